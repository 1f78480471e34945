"""Reports on ``segx export``, ``segx predict`` and ``segx doctor``."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segx.export import Derived, Exported, ExportedEngine, ImportedModel, Site
from segx.export.artifact import read_artifact
from segx.export.int8 import needs_narrow_weights
from segx.masks.metrics import MIN_IMAGES
from segx.model.synthetic import TRAINED_ON_SCENES
from segx.reporting.columns import (
    Field,
    counted,
    digits,
    figures,
    iou,
    memory,
    processor,
    seconds,
    table_of,
    within,
)
from segx.reporting.document import (
    Block,
    Bullets,
    Column,
    Command,
    Datum,
    Document,
    Facts,
    Paragraph,
    Section,
    Style,
    Table,
    text,
)
from segx.reporting.prose import NO_MARGIN, UNTRUSTED_INT8, blank_masks, few_held_out
from segx.reporting.renderers.csv_json import to_json
from segx.results.types import Machine, Parity
from segx.runtimes import Precision
from segx.system.derived import manifest_path

if TYPE_CHECKING:
    from segx.export.int8 import Stage
    from segx.predict.api import PredictReport
    from segx.predict.pipeline import PipelineReport

_DERIVED = {"fp16": "half precision, float32 in and out", "openvino": "laid out for OpenVINO"}


def export_document(made: Exported | ImportedModel | Derived | ExportedEngine | Site) -> Document:
    """Describe the result of ``export_file``."""
    if isinstance(made, Exported):
        return _exported(made)
    if isinstance(made, ImportedModel):
        return _imported(made)
    if isinstance(made, Derived):
        return _quantized(made) if made.stages else _derived(made)
    return _site(made) if isinstance(made, Site) else _engine(made)


def export_json(made: Exported | ImportedModel | Derived | ExportedEngine | Site) -> str:
    """Return what was made as JSON: the path of the file and its manifest, and what the manifest does not hold."""
    if isinstance(made, Site):
        return to_json({"path": str(made.path), "bytes": made.size, "models": list(made.models)})
    path = made.artifact.path if isinstance(made, (Exported, ImportedModel)) else made.path
    data = {"path": str(path)}
    with contextlib.suppress(FileNotFoundError):  # an exported file may have been moved without its manifest
        data |= json.loads(manifest_path(path).read_text(encoding="utf-8"))
    if isinstance(made, ExportedEngine):
        data["trtexec"] = made.trtexec
    if isinstance(made, Derived) and made.parity:
        data |= {name: getattr(made.parity, name) for name in ("flipped_pixels", "pixels", "worst_iou")}
    return to_json(data)


def _exported(exported: Exported) -> Document:
    """Describe an exported file and its verification."""
    artifact, proof = exported.artifact, exported.proof
    about = f"opset {proof.opset}, any batch size"
    if proof.size_multiple is not None:
        about += f", sizes in multiples of {proof.size_multiple}"
    batches = dict.fromkeys(str(row.batch_size) for row in proof.rows)
    sizes = dict.fromkeys(f"{row.width}x{row.height}" for row in proof.rows)
    of_sizes = f" of {', '.join(sizes)}" if len(sizes) > 1 else ""
    agreement = _agreement([row.parity for row in proof.rows])
    return Document(
        "segx export",
        (
            _file("exported" if exported.rebuilt else "up to date", artifact.path, about),
            ("model", f"{artifact.spec}, {artifact.output_kind}; weights {artifact.weights_sha256[:12]}"),
            ("images", artifact.spec.preprocessing),
            ("checked", f"ONNX Runtime against PyTorch at batch {', '.join(batches)}{of_sizes}: {agreement}"),
        ),
    )


def _agreement(parities: Sequence[Parity]) -> str:
    """Return in how many pixels masks differ, and by how much logits do."""
    flipped, pixels = (sum(getattr(each, name) for each in parities) for name in ("flipped_pixels", "pixels"))
    logits = max(each.max_abs_diff for each in parities)
    worst = f", worst IoU {iou(min(each.worst_iou for each in parities))}" if flipped else ""
    return f"{flipped:,} of {pixels:,} pixels differ{worst}, logits by at most {logits:.1g}"


def _imported(imported: ImportedModel) -> Document:
    """Describe the copy of a file that segx did not export, or a file that it exported."""
    artifact = imported.artifact
    facts = [
        _file("imported" if imported.rebuilt else "up to date", artifact.path),
        ("model", str(artifact.spec)),
        ("images", artifact.spec.preprocessing),
        ("made of", f"{artifact.checkpoint}, sha256 {artifact.weights_sha256[:12]}"),
    ]
    facts += [("changed", change) for change in imported.changes]
    if artifact.batch_size is not None:
        facts.append(("batch", f"only {artifact.batch_size}"))
    return _document(facts)


def _derived(derived: Derived) -> Document:
    """Describe a file made of an exported one, and how far its masks are from that file's."""
    images = read_artifact(derived.source).spec.preprocessing
    assert derived.parity
    checked = f"both files in ONNX Runtime on {derived.parity.images} generated samples: {_agreement([derived.parity])}"
    facts = [_file("made", derived.path, _DERIVED[derived.form]), ("images", images), ("made of", str(derived.source))]
    return _document([*facts, ("checked", checked)])


def _quantized(quantized: Derived) -> Document:
    """Describe a quantised file: per stage, the layers kept in float and the masks."""
    masks: list[Field[Parity]] = [
        figures("changed px", lambda parity: parity.flipped_pixels, form="{:,}"),
        (Column("mean IoU"), lambda parity: _judged_iou(parity, parity.mean_iou)),
        (Column("worst IoU"), lambda parity: _judged_iou(parity, parity.worst_iou)),
    ]
    fields: list[Field[tuple[int, Stage]]] = [
        figures("stage", lambda row: row[0], form="{}"),
        figures("calibrated on", lambda row: row[1].calibration_images, form="{}"),
        figures("int8 layers", lambda row: row[1].int8_layers, form="{}"),
        figures("float layers", lambda row: len(row[1].float_layers), form="{}"),
    ]
    fields += within(lambda row: row[1].parity, masks)
    engine, last = quantized.form.removeprefix("int8-"), quantized.stages[-1]
    artifact = read_artifact(quantized.source)
    facts = (
        _file("quantised" if quantized.rebuilt else "up to date", quantized.path, f"for {engine}"),
        ("images", artifact.spec.preprocessing),
        ("calibrated", _calibration(quantized)),
        (
            "weights",
            "7 bits, as this CPU has no VNNI" if needs_narrow_weights() else "8 bits; a CPU without VNNI needs 7",
        ),
        ("in float", ", ".join(last.float_layers) or "none"),
    )
    blocks: list[Block] = []
    if quantized.calibration is None and artifact.weights_sha256 not in TRAINED_ON_SCENES:
        blocks.append(Paragraph(UNTRUSTED_INT8, "warning"))
    if last.held_out_images < MIN_IMAGES:
        blocks.append(Paragraph(few_held_out(last.held_out_images), "warning"))
    if not last.has_margin:
        blocks.append(Paragraph(NO_MARGIN, "warning"))
    mirrored = " and their mirror images" if last.parity.images > last.held_out_images else ""
    caption = f"Masks of {counted(last.held_out_images, 'held-out image')}{mirrored} against the float file"
    return _document(facts, *blocks, table_of(caption, enumerate(quantized.stages, start=1), fields))


def _calibration(quantized: Derived) -> str:
    """Return what an int8 file was calibrated on."""
    count = quantized.stages[-1].calibration_images
    most = max(stage.calibration_images for stage in quantized.stages)
    images = f"images of {quantized.calibration}" if quantized.calibration else "generated scenes"
    return f"on {count} {images}" + (f"; {most} do not make the masks better" if most > count else "")


def _judged_iou(parity: Parity, value: float) -> Datum:
    """Return an IoU, which means nothing where all masks are blank."""
    return Datum(iou(value), value) if parity.judged else text("not judged", "warning")


def _engine(built: ExportedEngine) -> Document:
    """Describe a TensorRT engine, with the command that builds the same one."""
    recipe = built.facts.recipe
    facts = (
        _file("built" if built.rebuilt else "up to date", built.path),
        ("holds", f"{recipe.precision}, batch sizes {', '.join(map(str, recipe.batch_sizes))}"),
    )
    trtexec = Section(key="trtexec", title="The same with trtexec", blocks=(Command(built.trtexec),))
    return Document("segx export", facts, (trtexec,))


def _site(site: Site) -> Document:
    """Describe a static site."""
    return _document(
        (
            ("site", f"{site.path} ({memory(site.size)}; {', '.join(site.models)})"),
            ("try it", f"python3 -m http.server --directory {shlex.quote(str(site.path))}"),
            ("threads", f"need two headers of the web server: see {site.path / 'README.md'}"),
        )
    )


def _file(verb: str, path: Path, about: str = "") -> tuple[str, str]:
    return verb, f"{path} ({', '.join(filter(None, (memory(path.stat().st_size), about)))})"


def _document(facts: Sequence[tuple[str, str]], *blocks: Block) -> Document:
    return Document("segx export", tuple(facts), (Section(key="verified", blocks=blocks),) if blocks else ())


def predict_document(report: PredictReport) -> Document:
    """Describe what was done, with what, and where the time went."""
    done, choice = report.pipeline, report.choice
    speed = f" ({digits(done.images_per_s)} images/s, load {done.ready_s:.1f} s)" if done.images else ""
    asked = done.images + done.failed
    facts = [
        ("done", f"{done.images:,} of {counted(asked, 'image')} -> {report.output} in {done.seconds:.1f} s{speed}"),
        ("with", f"{choice.variant}, batch {choice.batch_size}: {choice.reason}"),
        ("images", report.spec.preprocessing),
    ]
    if done.images:
        facts.append(("time", _where_the_time_went(done)))
    if report.before:
        facts.append(("earlier", f"{counted(report.before, 'image')} done by an earlier run"))
    if done.failed:
        facts.append(("failed", f"{counted(done.failed, 'image')}, the first: {done.first_failure}"))
    if done.restarts:
        facts.append(("restarts", f"the runtime's process was restarted {counted(done.restarts, 'time')}"))
    notes = [done.doubt, *report.notes, blank_masks(done, report.spec)]
    facts += [("note", note) for note in notes if note]
    return Document("segx predict", tuple(facts))


# Stages that are named if they take at least this share of the time.
_LEAST_SHARE = 0.02


def _where_the_time_went(done: PipelineReport) -> str:
    """Return the time per image in each stage, summed over threads, the longest first; short ones together."""
    spent = {name: seconds for name, seconds in done.stages.items() if name != "wait"}
    total = sum(spent.values())
    named = {name: each for name, each in spent.items() if total and each >= _LEAST_SHARE * total}
    parts = [
        f"{'model' if name == 'infer' else name} {seconds(each / done.images)} ({each / total:.0%})"
        for name, each in sorted(named.items(), key=lambda pair: -pair[1])
    ]
    if rest := total - sum(named.values()):
        parts.append(f"other {seconds(rest / done.images)}")
    return f"per image: {', '.join(parts)}"


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
        "notes": report.notes,
        "images_per_s": done.images_per_s,
        **dataclasses.asdict(done),
    }


@dataclass(frozen=True)
class Finding:
    """One runtime: ready, or the reason why not and what to do."""

    runtime: str
    ready: bool
    reason: str = ""
    remedy: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    precisions: Mapping[Precision, str] = field(default_factory=dict)  # see ``precision_support``


@dataclass(frozen=True)
class Diagnosis:
    """The machine and its runtimes."""

    machine: Machine
    runtimes: tuple[Finding, ...]


def doctor_document(diagnosis: Diagnosis, *, versions: bool = False) -> Document:
    """Describe the machine and its runtimes, those alike together, and with ``versions`` every package."""
    host = diagnosis.machine
    load = "" if host.load_average_1min is None else f", load {host.load_average_1min:.1f}"
    gpus = [f"{gpu.name}, {gpu.memory_bytes / 2**30:.0f} GiB, driver {gpu.driver}" for gpu in host.gpus]
    browsers = {found.facts["browser"]: None for found in diagnosis.runtimes if "browser" in found.facts}
    known_flags = ", ".join(host.cpu_flags) or "no instruction sets that affect speed"
    cores = f"{host.cores_usable} of {counted(host.cores_total, 'core')}"
    facts = (
        ("cpu", f"{processor(host.cpu)}, {cores}{load}; {known_flags}"),
        ("memory", f"{memory(host.memory_total_bytes)}, {memory(host.memory_available_bytes)} free"),
        *([("gpu", "; ".join(gpus))] if gpus else []),
        *(("browser", browser) for browser in browsers),
        ("system", f"{host.system}, Python {host.python}, segx {host.versions.get('segx', '')}"),
    )
    ready = [found for found in diagnosis.runtimes if found.ready]
    missing: dict[str, list[str]] = {}
    for found in diagnosis.runtimes:
        if not found.ready:
            missing.setdefault(f"{found.reason}; {found.remedy}", []).append(found.runtime)
    blocks: list[Block] = []
    if ready:
        blocks.append(_ready_table(ready))
    if missing:
        lines = tuple(f"{', '.join(names)}: {why}" for why, names in missing.items())
        blocks.append(Bullets(lines, f"not here ({len(diagnosis.runtimes) - len(ready)})"))
    if versions:
        blocks.append(Facts(tuple(host.versions.items()), "versions"))
    if ready:
        more = "" if versions else "; all versions: segx doctor --versions"
        blocks.append(Paragraph(f"next: segx bench --quick{more}"))
    return Document("segx doctor", facts, (Section(key="state", blocks=tuple(blocks)),))


def _ready_table(ready: Sequence[Finding]) -> Table:
    """Show how the runtimes that are ready compute in each precision that one of them has."""
    names = [name for name in ready[0].precisions if any(found.precisions[name] != "no" for found in ready)]
    styles: Mapping[str, Style] = {"no": "muted", "emulated": "warning"}
    rows = []
    for found in ready:
        version = next(iter(found.facts.values()), "")
        words = (text(word := found.precisions[name], styles.get(word, "")) for name in names)
        rows.append((text(found.runtime), *words, text(version)))
    columns = (Column("runtime", numeric=False), *(Column(name, numeric=False) for name in names))
    return Table(
        f"ready ({len(ready)})",
        (*columns, Column("version", numeric=False, optional=1)),
        tuple(rows),
        notes=("native: with instructions for this precision; emulated: without them, which is slower.",),
    )
