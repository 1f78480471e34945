"""Reports on ``segx export``, ``segx predict`` and ``segx doctor``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segx.export import Derived, Exported, ExportedEngine, ImportedModel
from segx.export.artifact import manifest_path, read_artifact
from segx.model.synthetic import TRAINED_ON_SCENES
from segx.reporting.columns import Field, counted, digits, figures, gibibytes, iou, memory, table_of, within, words
from segx.reporting.data import to_json
from segx.reporting.document import Block, Column, Command, Datum, Document, Paragraph, Section, number, text
from segx.reporting.prose import UNTRUSTED_INT8
from segx.results.types import Machine, Parity
from segx.system.files import sha256_of

if TYPE_CHECKING:
    from segx.export.artifact import ProofRow
    from segx.export.int8 import Stage
    from segx.predict.api import PredictReport

_FLIPS: Field[Parity] = figures("flipped px", lambda parity: parity.flipped_pixels, form="{}")
_WORST_IOU: Field[Parity] = figures("worst IoU", lambda parity: parity.worst_iou, form=iou)
_PARITY: list[Field[Parity]] = [
    figures("max |diff|", lambda parity: parity.max_abs_diff, form="{:.1e}"),
    figures("of range", lambda parity: parity.relative_diff, form="{:.1e}"),
    _FLIPS,
    figures("of pixels", lambda parity: parity.pixels, form="{}"),
    _WORST_IOU,
]

_DERIVED = {"fp16": "half precision, float32 in and out", "openvino": "laid out for OpenVINO"}


def export_document(made: Exported | ImportedModel | Derived | ExportedEngine) -> Document:
    """Describe the result of ``export_file``."""
    if isinstance(made, Exported):
        return _exported(made)
    if isinstance(made, ImportedModel):
        return _imported(made)
    if isinstance(made, Derived):
        return _quantized(made) if made.stages else _derived(made)
    return _engine(made)


def export_json(made: Exported | ImportedModel | Derived | ExportedEngine) -> str:
    """Return what was made as JSON: the manifest of the file, or else the digests of the file and its source."""
    if isinstance(made, Exported):
        return manifest_path(made.artifact.path).read_text(encoding="utf-8")
    if isinstance(made, ImportedModel):
        data = _file_data(made.artifact.path, made.source, "imported", None)
        return to_json({**data, "changes": list(made.changes)})
    if not isinstance(made, Derived):
        recipe = made.manifest.recipe
        data = {
            "path": str(made.path),
            "sha256": sha256_of(made.path),
            "precision": recipe.precision,
            "batch_sizes": list(recipe.batch_sizes),
            "trtexec": made.trtexec,
        }
        return to_json(data)
    if made.stages:
        return manifest_path(made.path).read_text(encoding="utf-8")
    return to_json(_file_data(made.path, made.source, _DERIVED[made.form], made.parity))


def _exported(exported: Exported) -> Document:
    """Describe an exported file and its verification."""
    artifact, proof = exported.artifact, exported.proof
    about = f"opset {proof.opset}, {proof.nodes} nodes, batch axis {proof.batch_axis!r}"
    if proof.size_multiple is not None:
        about += f", sizes in multiples of {proof.size_multiple}"
    facts = (
        _file("exported" if exported.rebuilt else "up to date", artifact.path, about),
        ("model", f"{artifact.spec}, output {artifact.output_kind}"),
        ("images", artifact.spec.preprocessing),
        ("weights", f"{artifact.checkpoint}, sha256 {artifact.weights_sha256[:12]}"),
    )
    fields: list[Field[ProofRow]] = [
        figures("batch", lambda row: row.batch_size, form="{}"),
        (Column("size"), lambda row: Datum(f"{row.width}x{row.height}", row.width * row.height)),
    ]
    fields += within(lambda row: row.parity, _PARITY)
    return _document(facts, table_of("Verified: ONNX Runtime against PyTorch on generated samples", proof.rows, fields))


def _imported(imported: ImportedModel) -> Document:
    """Describe a file that was not exported by segx."""
    artifact = imported.artifact
    facts = [
        _file("imported", artifact.path),
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
    facts = (
        _file("made", derived.path, _DERIVED[derived.form]), ("images", images), ("made of", str(derived.source))
    )  # fmt: skip
    assert derived.parity
    caption = f"Check: both files in ONNX Runtime on {derived.parity.images} generated samples"
    return _document(facts, table_of(caption, [derived.parity], _PARITY))


def _quantized(quantized: Derived) -> Document:
    """Describe a quantised file: per stage, the layers kept in float and the masks."""
    masks: list[Field[Parity]] = [
        _FLIPS,
        (Column("mean IoU"), lambda parity: _judged_iou(parity, parity.mean_iou)),
        (Column("worst IoU"), lambda parity: _judged_iou(parity, parity.worst_iou)),
    ]
    fields: list[Field[tuple[int, Stage]]] = [
        figures("stage", lambda row: row[0], form="{}"),
        figures("int8 layers", lambda row: row[1].int8_layers, form="{}"),
        figures("float layers", lambda row: len(row[1].float_layers), form="{}"),
    ]
    fields += within(lambda row: row[1].parity, masks)
    engine = quantized.form.removeprefix("int8-")
    artifact = read_artifact(quantized.source)
    facts = (
        _file("quantised" if quantized.rebuilt else "up to date", quantized.path, f"for {engine}"),
        ("images", artifact.spec.preprocessing),
        ("calibrated", f"on {quantized.calibration or 'generated scenes'}"),
        ("in float", ", ".join(quantized.float_layers) or "none"),
    )
    blocks: list[Block] = []
    if quantized.calibration is None and artifact.weights_sha256 not in TRAINED_ON_SCENES:
        blocks.append(Paragraph(UNTRUSTED_INT8, "warning"))
    caption = f"Masks of {quantized.stages[-1].parity.images} held-out images against the float file"
    return _document(facts, *blocks, table_of(caption, enumerate(quantized.stages, start=1), fields))


def _judged_iou(parity: Parity, value: float) -> Datum:
    """Return an IoU, which means nothing where all masks are blank."""
    return Datum(iou(value), value) if parity.judged else text("not judged", "warning")


def _engine(built: ExportedEngine) -> Document:
    """Describe a TensorRT engine, with the command that builds the same one."""
    recipe = built.manifest.recipe
    facts = (
        _file("built" if built.rebuilt else "up to date", built.path),
        ("holds", f"{recipe.precision}, batch sizes {', '.join(map(str, recipe.batch_sizes))}"),
    )
    trtexec = Section(key="trtexec", title="The same with trtexec", blocks=(Command(built.trtexec),))
    return Document("segx export", facts, (trtexec,))


def _file_data(path: Path, source: Path, about: str, parity: Parity | None) -> dict[str, Any]:
    return {
        "path": str(path),
        "sha256": sha256_of(path),
        "source": str(source),
        "source_sha256": sha256_of(source),
        "about": about,
        "flipped_pixels": parity.flipped_pixels if parity else None,
        "pixels": parity.pixels if parity else None,
        "worst_iou": parity.worst_iou if parity else None,
    }


def _file(verb: str, path: Path, about: str = "") -> tuple[str, str]:
    return verb, f"{path} ({', '.join(filter(None, (memory(path.stat().st_size), about)))})"


def _document(facts: Sequence[tuple[str, str]], *blocks: Block) -> Document:
    return Document("segx export", tuple(facts), (Section(key="verified", blocks=blocks),) if blocks else ())


def predict_document(report: PredictReport) -> Document:
    """Describe counts and throughput, and where the time went."""
    done, choice = report.pipeline, report.choice
    facts = [
        ("done", f"{counted(done.images, 'image')} of {report.source} segmented to {report.output}"),
        ("with", f"{choice.variant} at batch {choice.batch_size}: {choice.reason}"),
        ("images", report.spec.preprocessing),
    ]
    if report.before:
        facts.append(("earlier", f"{counted(report.before, 'image')} done by an earlier run"))
    if done.failed:
        facts.append(("failed", counted(done.failed, "image")))
    if done.restarts:
        facts.append(("restarts", f"the runtime's process was restarted {counted(done.restarts, 'time')}"))
    facts += [("note", note) for note in report.notes]
    if not done.images:
        return Document("segx predict", tuple(facts))
    speed = f"{digits(done.images_per_s, 4)} images/s; {done.seconds:.1f} s, of which {done.ready_s:.1f} s loading"
    facts.append(("speed", speed))
    threads = dict.fromkeys(("read", "decode", "preprocess"), done.loaders)
    threads |= dict.fromkeys(("postprocess", "encode"), done.writers)

    def threads_of(row: tuple[str, float]) -> Datum:
        stage, _ = row
        return number(threads[stage], "{}") if stage in threads else text(done.facts.get("threads", ""))

    fields: list[Field[tuple[str, float]]] = [
        words("stage", lambda row: row[0]),
        figures("seconds", lambda row: row[1], form="{:.2f}"),
        figures("ms/image", lambda row: 1e3 * row[1] / done.images, form="{:.2f}"),
        (Column("threads"), threads_of),
    ]
    table = table_of("", dataclasses.asdict(done.stages).items(), fields)
    return Document("segx predict", tuple(facts), (Section(key="stages", blocks=(table,)),))


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


@dataclass(frozen=True)
class Diagnosis:
    """The machine and its runtimes."""

    machine: Machine
    runtimes: tuple[Finding, ...]


def doctor_document(diagnosis: Diagnosis) -> Document:
    """Describe the machine, the versions of packages, and each runtime."""
    host = diagnosis.machine
    gpus = [f"{gpu.name}, {gpu.memory_bytes / 2**30:.0f} GiB, driver {gpu.driver}" for gpu in host.gpus]
    load = host.load_average_1min
    facts = (
        ("cpu", f"{host.cpu}, {host.cores_usable} of {host.cores_total} cores usable"),
        ("flags", " ".join(host.cpu_flags) or "none that affect speed"),
        ("memory", f"{gibibytes(host.memory_total_bytes)}, {gibibytes(host.memory_available_bytes)} free"),
        ("gpu", "; ".join(gpus) or "no NVIDIA GPU"),
        ("load", "unknown" if load is None else f"{load:.2f} in the last minute"),
        ("system", f"{host.system}, Python {host.python}"),
    )
    packages: list[Field[tuple[str, str]]] = [
        words("package", lambda pair: pair[0]),
        words("version", lambda pair: pair[1]),
    ]
    states: list[Field[Finding]] = [
        words("runtime", lambda finding: finding.runtime),
        (Column("state", numeric=False), lambda f: text("ready", "good") if f.ready else text("not ready", "warning")),
        words("details", _details),
    ]
    tables = (table_of("", host.versions.items(), packages), table_of("", diagnosis.runtimes, states))
    return Document("segx doctor", facts, (Section(key="state", blocks=tables),))


def _details(finding: Finding) -> str:
    if finding.ready:
        return ", ".join(f"{name} {value}" for name, value in finding.facts.items())
    return f"{finding.reason}; {finding.remedy}"
