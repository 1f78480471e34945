"""What a run did, as text and as JSON."""

from __future__ import annotations

import dataclasses
import json

from segx.predict.api import PredictReport
from segx.reporting.text import aligned


def to_text(report: PredictReport) -> str:
    """Counts and throughput, and where the time went."""
    done, choice = report.pipeline, report.choice
    lines = [
        f"{_images(done.images)} of {report.source} segmented to {report.output}",
        f"{choice.variant} at batch {choice.batch_size}: {choice.reason}",
    ]
    if report.before:
        lines.append(f"{_images(report.before)} done by an earlier run")
    if done.failed:
        lines.append(f"{_images(done.failed)} failed")
    if done.restarts:
        lines.append(f"the runtime's process was started again {done.restarts} times")
    if done.images:
        lines.append(
            f"{done.images_per_s:.4g} images/s; {done.seconds:.1f} s, of which {done.ready_s:.1f} s to load the model"
        )
        rows = [
            [stage, f"{seconds:.2f}", f"{1e3 * seconds / done.images:.2f}", _threads(report, stage)]
            for stage, seconds in dataclasses.asdict(done.stages).items()
        ]
        lines += ["", aligned(["stage", "seconds", "ms/image", "threads"], rows, left=frozenset({0}))]
    return "\n".join(lines) + "\n"


def to_json(report: PredictReport) -> str:
    """The same as one JSON object."""
    done, choice = report.pipeline, report.choice
    values = {
        "output": str(report.output),
        "source": report.source,
        "runtime": choice.variant.runtime,
        "precision": choice.variant.precision,
        "batch_size": choice.batch_size,
        "reason": choice.reason,
        "done_before": report.before,
        "images_per_s": done.images_per_s,
        **dataclasses.asdict(done),
    }
    return json.dumps(values, indent=1) + "\n"


def _images(count: int) -> str:
    return f"{count} image{'s' * (count != 1)}"


def _threads(report: PredictReport, stage: str) -> str:
    from_crews = {
        **dict.fromkeys(("read", "decode", "preprocess"), report.pipeline.loaders),
        **dict.fromkeys(("postprocess", "encode"), report.pipeline.writers),
    }
    return str(from_crews[stage]) if stage in from_crews else report.pipeline.facts.get("threads", "")
