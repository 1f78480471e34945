"""The report on a run of ``segx predict``."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from segx.reporting.columns import Field, counted, digits, figures, table_of, words
from segx.reporting.document import Column, Datum, Document, Section, number, text

if TYPE_CHECKING:
    from segx.predict.api import PredictReport

_LOADED, _STORED = ("read", "decode", "preprocess"), ("postprocess", "encode")


def predict_document(report: PredictReport) -> Document:
    """Describe counts and throughput, and where the time went."""
    done, choice = report.pipeline, report.choice
    facts = [
        ("done", f"{counted(done.images, 'image')} of {report.source} segmented to {report.output}"),
        ("with", f"{choice.variant} at batch {choice.batch_size}: {choice.reason}"),
    ]
    if report.before:
        facts.append(("earlier", f"{counted(report.before, 'image')} done by an earlier run"))
    if done.failed:
        facts.append(("failed", counted(done.failed, "image")))
    if done.restarts:
        facts.append(("restarts", f"the runtime's process was restarted {counted(done.restarts, 'time')}"))
    if not done.images:
        return Document("segx predict", tuple(facts))
    facts.append(
        (
            "speed",
            f"{digits(done.images_per_s, 4)} images/s; {done.seconds:.1f} s, of which {done.ready_s:.1f} s loading",
        )
    )
    fields: list[Field[tuple[str, float]]] = [
        words("stage", lambda row: row[0]),
        figures("seconds", lambda row: row[1], form="{:.2f}"),
        figures("ms/image", lambda row: 1e3 * row[1] / done.images, form="{:.2f}"),
        (Column("threads"), lambda row: _threads(report, row[0])),
    ]
    table = table_of("", dataclasses.asdict(done.stages).items(), fields)
    section = Section(key="stages", blocks=(table,))
    return Document("segx predict", tuple(facts), (section,))


def predict_data(report: PredictReport) -> dict[str, Any]:
    """Return the report for JSON."""
    done, choice = report.pipeline, report.choice
    return {
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


def _threads(report: PredictReport, stage: str) -> Datum:
    if stage in _LOADED:
        return number(report.pipeline.loaders, "{}")
    if stage in _STORED:
        return number(report.pipeline.writers, "{}")
    return text(report.pipeline.facts.get("threads", ""))
