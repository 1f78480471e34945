"""ONNX to TensorRT engine, on a double of TensorRT; and the ``trtexec`` command that builds the same."""

from __future__ import annotations

import dataclasses
import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from segx.errors import ArtifactError, OutputError, RuntimeUnavailable, SegxError, UsageError
from segx.export import export_file
from segx.export.tensorrt import ExportedEngine, export_tensorrt, trtexec_command
from segx.model.spec import ModelSpec
from segx.reporting.command_documents import export_document, export_json
from segx.reporting.renderers.text import to_text
from segx.runtimes.tensorrt import Recipe
from segx.system import machine
from segx.system.derived import manifest_path
from segx.system.files import sha256_of
from segx.system.processes import Workers
from segx.system.progress import Told
from segx.system.text import printable

SPEC = ModelSpec(height=32, width=32)


@pytest.fixture
def output(tensorrt: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the doubled machine writes an engine; timings go to the folder ``timings`` in ``tmp_path``."""
    monkeypatch.setattr("segx.export.tensorrt.CACHE_FOLDER", tmp_path / "timings")
    return tmp_path / f"of-{tensorrt.version}" / "plain.engine"


def exported(onnx: Path, output: Path, sizes: tuple[int, ...] = (1, 4), **settings: Any) -> ExportedEngine:
    return export_tensorrt(onnx, SPEC, sizes, output=output, **settings)


def test_a_missing_onnx_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no ONNX file at .*gone\.onnx"):
        export_tensorrt(tmp_path / "gone.onnx", ModelSpec(), [1])


def test_engine_and_manifest_are_written(tensorrt: Any, plain_onnx: Path, output: Path) -> None:
    done = exported(plain_onnx, output, (4, 1, 4), threads=3, workspace_bytes=2**20)
    assert done.rebuilt
    assert sorted(path.name for path in output.parent.iterdir()) == ["plain.engine", "plain.engine.json"]
    (build,) = tensorrt.builds
    assert build["batch_sizes"] == [1, 4], "a profile for each, in rising order, each once"
    assert (build["threads"], build["workspace"], build["tf32"]) == (3, 2**20, False)
    values = json.loads(manifest_path(output).read_text())
    assert values["artifact_sha256"] == sha256_of(output)
    proof = values["proof"]
    assert proof["recipe"] == {
        "onnx_sha256": sha256_of(plain_onnx),
        "precision": "fp32",
        "input_shape": [1, 32, 32],
        "output_shape": [1, 32, 32],
        "batch_sizes": [1, 4],
        "workspace_bytes": 2**20,
    }
    assert {**proof["environment"], "system": ""} == {
        "tensorrt": "10.16.1.11",
        "gpu": "Fake GPU",
        "compute_capability": "9.0",
        "system": "",
        "cuda_runtime": "13.2",
        "cuda_driver": "13.1",
    }
    assert (proof["layer_types"], proof["tf32"]) == ({"FLOAT": 2, "INT64": 1}, False)


def test_nothing_is_built_when_nothing_changed(tensorrt: Any, plain_onnx: Path, output: Path) -> None:
    first = exported(plain_onnx, output)
    told: list[str] = []
    again = exported(plain_onnx, output, progress=Told(told.append))
    assert again == dataclasses.replace(first, rebuilt=False)
    assert told == []
    assert len(tensorrt.builds) == 1


@pytest.mark.parametrize("change", ["force", "sizes", "precision", "workspace", "version", "damage", "no engine"])
def test_it_is_built_again_when_something_changed(tensorrt: Any, plain_onnx: Path, output: Path, change: str) -> None:
    exported(plain_onnx, output)
    settings: dict[str, Any] = {
        "force": {"force": True},
        "sizes": {"sizes": (1, 8)},
        "precision": {"precision": "tf32"},
        "workspace": {"workspace_bytes": 2**30},
    }.get(change, {})
    if change == "version":
        tensorrt.version = "11.4.0.106"
    if change == "damage":
        output.write_bytes(b"damage")
    if change == "no engine":
        output.unlink()
    told: list[str] = []
    assert exported(plain_onnx, output, progress=Told(told.append), **settings).rebuilt
    assert len(told) == 1
    assert len(tensorrt.builds) == 2


@pytest.mark.parametrize("problem", ["parser", "build", "deserialize", "precision"])
def test_a_failed_build_leaves_no_file_and_the_old_one_alone(
    tensorrt: Any, plain_onnx: Path, output: Path, problem: str
) -> None:
    old = output.with_name("old.engine")
    exported(plain_onnx, old)
    before = {path: path.read_bytes() for path in output.parent.iterdir()}
    tensorrt.refuse = problem
    tensorrt.parser_errors = ("no",) if problem == "parser" else ()
    tensorrt.types = ("HALF",) if problem == "precision" else ("FLOAT",)
    for path in (output, old):
        with pytest.raises(SegxError, match=r"cannot read|cannot build|does not accept|is narrower"):
            exported(plain_onnx, path, force=True)
    assert {path: path.read_bytes() for path in output.parent.iterdir()} == before


def test_without_a_name_it_stands_beside_the_model_and_timings_in_artifacts(
    tensorrt: Any, plain_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = tmp_path / "m.onnx"
    model.write_bytes(plain_onnx.read_bytes())
    assert export_tensorrt(model, SPEC, [1]).path == tmp_path / "m.engine"
    (timings,) = (tmp_path / "artifacts" / "tensorrt-cache").iterdir()
    assert timings.name.startswith("timings-")
    assert len(tensorrt.builds) == 1


@pytest.mark.parametrize("sizes", [(), (0,), (4, -1)])
def test_batch_sizes_that_make_no_engine_are_refused(plain_onnx: Path, output: Path, sizes: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="are not usable"):
        exported(plain_onnx, output, sizes)


def test_a_folder_in_the_way_is_a_clear_error(output: Path, plain_onnx: Path) -> None:
    output.mkdir(parents=True)
    with pytest.raises(OutputError, match="it is a folder"):
        exported(plain_onnx, output)


@pytest.mark.parametrize("name", ["plain.engine", "plain.engine.json"])
def test_a_file_that_segx_did_not_write_is_kept(plain_onnx: Path, output: Path, name: str) -> None:
    output.parent.mkdir()
    mine = output.with_name(name)
    mine.write_text("of trtexec")
    with pytest.raises(OutputError, match="was not written by segx"):
        exported(plain_onnx, output, force=True)
    assert mine.read_text() == "of trtexec"


def test_the_model_is_not_replaced_by_its_engine(plain_onnx: Path, output: Path) -> None:
    output.parent.mkdir()
    output.symlink_to(plain_onnx)
    for path in (plain_onnx, output):
        with pytest.raises(OutputError, match="would replace its own source"):
            exported(plain_onnx, path)


def test_without_a_gpu_it_says_why_for_real(plain_onnx: Path, tmp_path: Path) -> None:
    if (problem := machine.cuda_problem()) is None:
        pytest.skip("this machine has a GPU")
    with pytest.raises(RuntimeUnavailable) as caught:
        exported(plain_onnx, tmp_path / "m.engine")
    assert caught.value.message == problem
    assert f"there, this builds it: trtexec --onnx={plain_onnx}" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def command(
    *,
    onnx: Path = Path("m.onnx"),
    sizes: tuple[int, ...] = (1, 16),
    precision: Any = "fp32",
    workspace_bytes: int | None = None,
    timing_cache: Path | None = None,
    tensorrt: str | None = "10.16.1.11",
) -> str:
    recipe = Recipe(
        onnx_sha256="0" * 64,
        precision=precision,
        input_shape=(1, 256, 256),
        output_shape=(1, 256, 256),
        batch_sizes=sizes,
        workspace_bytes=workspace_bytes,
    )
    return trtexec_command(onnx, recipe, Path("m.engine"), timing_cache=timing_cache, tensorrt=tensorrt)


def test_trtexec_builds_the_same() -> None:
    text = command(workspace_bytes=4 * 2**30, timing_cache=Path("t.cache"))
    assert text == (
        "trtexec --onnx=m.onnx --saveEngine=m.engine --stronglyTyped --noTF32 --memPoolSize=workspace:4096M"
        " --timingCacheFile=t.cache"
        " --profile=0 --minShapes=image:1x1x256x256 --optShapes=image:1x1x256x256 --maxShapes=image:1x1x256x256"
        " --profile=1 --minShapes=image:16x1x256x256 --optShapes=image:16x1x256x256 --maxShapes=image:16x1x256x256"
        " --skipInference"
    )


@pytest.mark.parametrize(("tensorrt_version", "needed"), [("10.16.1.11", True), ("11.4.0.106", False), (None, True)])
def test_trtexec_is_told_to_type_strongly_where_it_is_a_choice(tensorrt_version: str | None, needed: bool) -> None:
    assert ("--stronglyTyped" in command(tensorrt=tensorrt_version)) is needed


@pytest.mark.parametrize(("precision", "off"), [("fp32", True), ("tf32", False), ("fp16", True), ("int8", True)])
def test_trtexec_is_told_of_tf32_and_of_no_other_precision(precision: str, off: bool) -> None:
    text = command(precision=precision)
    assert ("--noTF32" in text) is off
    assert not any(option in text for option in ("--fp16", "--int8", "--bf16", "--best"))


def test_trtexec_takes_bytes_where_mebibytes_would_round() -> None:
    assert "--memPoolSize=workspace:1000000B" in command(workspace_bytes=1_000_000)


def test_names_for_trtexec_are_quoted_for_the_shell() -> None:
    text = command(onnx=Path("my model's.onnx"), sizes=(1,))
    words = shlex.split(text)
    assert words[:2] == ["trtexec", "--onnx=my model's.onnx"]
    assert words[-1] == "--skipInference"


def test_an_export_gives_the_command(plain_onnx: Path, output: Path) -> None:
    done = exported(plain_onnx, output)
    assert shlex.split(printable(done.trtexec)) == shlex.split(done.trtexec)
    _, _, shown = to_text(export_document(done)).partition("The same with trtexec\n")
    assert shlex.split(shown.replace(" \\\n", "\n")) == shlex.split(done.trtexec)  # as a shell joins lines
    assert f"--onnx={plain_onnx}" in done.trtexec
    assert f"--saveEngine={output}" in done.trtexec
    assert f"--timingCacheFile={output.parents[1] / 'timings' / 'timings-'}" in done.trtexec


def test_one_call_exports_a_model_and_builds_its_engine(
    tensorrt: Any, plain_onnx: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output.parent.mkdir()
    monkeypatch.chdir(output.parent)
    # A worker would not have the double.
    monkeypatch.setattr(Workers, "call", lambda _, function, arguments, **_how: function(**arguments))
    built = export_file(None, model=plain_onnx, engine_batch_sizes=(1, 4), output=output)
    assert isinstance(built, ExportedEngine)
    assert built.path == output
    told = json.loads(export_json(built))
    assert (told["path"], told["proof"]["recipe"]["batch_sizes"]) == (str(output), [1, 4])
    assert told["trtexec"] == built.trtexec
    assert len(tensorrt.builds) == 1
