"""Results through JSON, what is refused, and the JSON Schema with its documentation."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from docs.results_schema import SCHEMA_FILE, TABLES_FILE, documented_fields, results_schema, with_tables
from segx.analysis.compare import compare, labelled, side_by_side
from segx.analysis.figures import limits_for, verdict_of
from segx.analysis.history import read_history
from segx.analysis.recommend import Constraints
from segx.errors import ResultsError
from segx.masks.agreement import LIMITS
from segx.reporting.bench_document import bench_document
from segx.reporting.renderers import csv_json, markdown
from segx.reporting.renderers import text as terminal
from segx.reporting.renderers.html.page import write_bench_page
from segx.reporting.runs_document import comparison_document, history_document, side_by_side_document
from segx.results.store import (
    SCHEMA_VERSION,
    load_results,
    recent_benches,
    to_json,
)
from segx.results.types import (
    Cell,
    ClassParity,
    DeviceMemory,
    Gpu,
    HostMemory,
    NoiseProbe,
    Parity,
    Peaks,
    Results,
    Round,
    TruthScore,
    Wall,
    Work,
)
from segx.runtimes import Precision, Variant
from tests.benching import quick_bench
from tests.builders import image_parity
from tests.forms import to_text
from tests.mutations import damaged_json, few_or_many, read_all

MakeResults = Callable[..., Results]
MakeParity = Callable[..., Parity]

SAVED = Path(__file__).parent / "results.json"
COMMITTED = sorted((Path(__file__).parents[2] / "docs" / "results").glob("*/results.json"))
SCHEMA = results_schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
CELL = Cell(runtime="onnxruntime-cuda", precision="fp32", batch_size=1, status="ok", samples_s=(0.5,) * 8)


def _again(results: Results, folder: Path) -> Results:
    (folder / "results.json").write_text(to_json(results))
    return load_results(folder)


# Through JSON


def test_every_field_survives_json(make_results: MakeResults, make_parity: MakeParity, tmp_path: Path) -> None:
    turn = Round(number=3, runs=8, load=1.5, throttled_s=0.1, stolen_s=0.2, gpu_mhz=1980, gpu_slowed="power cap")
    cell = dataclasses.replace(
        CELL,
        precision="tf32",
        scope="device",
        rounds=(turn,),
        stopped="settled",
        import_s=0.1,
        load_s=0.2,
        first_s=0.3,
        facts={"threads": "2"},
        host_memory=HostMemory(1, 2, 3, "made up", 4),
        device_memory=DeviceMemory(peak_bytes=5, steady_bytes=6, method="NVML", counter_bytes=7, counter="torch"),
        parity=make_parity(flip_distance_px=2.5),
    )
    failed = dataclasses.replace(CELL, batch_size=None, status="unavailable", samples_s=(), reason="no", remedy="yes")
    results = dataclasses.replace(
        make_results(cell, failed, min_iou=0.9, max_flips=0.01, budget_s=9.0, memory_limit_bytes=10**9),
        noise=(NoiseProbe(change="batch 8 against 1", images=8, max_abs_diff=1e-5, flipped_pixels=0),),
        load_after=0.25,
        wall=Wall(total=10.0, sampling=4.0, loading=2.5, export=0.0, reference=2.0, peaks=0.5),
        peaks=(Peaks(device="cpu", operations_per_s={"fp32": 2e11}, copy_bytes_per_s=1e10, method="made up"),),
    )
    work = Work(operations=4, weight_bytes=3, activation_bytes=2, operators=1)
    results = dataclasses.replace(results, model=dataclasses.replace(results.model, work=work))
    assert _again(results, tmp_path) == results
    assert results.wall
    assert results.wall.overhead == pytest.approx(0.1)


def test_results_without_cells_survive_json(make_results: MakeResults, tmp_path: Path) -> None:
    assert _again(make_results(), tmp_path) == make_results()


def test_a_noise_floor_that_is_not_finite_can_still_be_shown(
    make_results: MakeResults, make_parity: MakeParity, tmp_path: Path
) -> None:
    probe = NoiseProbe(change="threads 1 against 2", images=4, max_abs_diff=math.inf, flipped_pixels=9)
    cell = dataclasses.replace(CELL, parity=make_parity(flipped_pixels=1))
    results = make_results(cell, runtimes=("onnxruntime-cuda",))
    results = dataclasses.replace(results, noise=(probe,))
    assert to_text(_again(results, tmp_path)) == to_text(results)


def test_a_machine_without_a_load_average_can_still_be_shown(make_results: MakeResults, tmp_path: Path) -> None:
    results = make_results(CELL, runtimes=("onnxruntime-cuda",))
    host = dataclasses.replace(results.machine, load_average_1min=None)
    results = dataclasses.replace(results, machine=host)
    assert to_text(_again(results, tmp_path)) == to_text(results)


def test_a_name_that_is_not_utf_8_survives_json(make_results: MakeResults, tmp_path: Path) -> None:
    results = make_results(CELL)
    odd = dataclasses.replace(results, inputs=dataclasses.replace(results.inputs, names=("\udc80.png",)))
    assert _again(odd, tmp_path) == odd


def test_json_has_the_version_first_and_a_line_per_field_and_cell(make_results: MakeResults) -> None:
    lines = to_json(make_results(CELL, CELL)).splitlines()
    assert lines[0] == f'{{"schema_version": {SCHEMA_VERSION},'
    fields = [field.name for field in dataclasses.fields(Results) if field.name != "cells"]
    assert [json.loads(f"{{{line.rstrip(',')}}}").popitem()[0] for line in lines[1 : 1 + len(fields)]] == fields
    assert lines[1 + len(fields)] == '"cells": ['
    assert [json.loads(line.rstrip(","))["runtime"] for line in lines[2 + len(fields) : -1]] == ["onnxruntime-cuda"] * 2


# What is refused


@pytest.mark.parametrize(
    ("field", "wrong", "complaint"),
    [
        ("cells", None, "$.cells: expected `array`, got `null`"),
        ("cells", [[]], "$.cells[0]: expected `object`, got `array`"),
        ("cells", [{}], "$.cells[0]: object missing required field `runtime`"),
        ("machine", {}, "$.machine: object missing required field `cpu`"),
        ("model", {"spec": []}, "$.model.spec: expected `object`, got `array`"),
        ("noise", [{"change": "made up"}], "$.noise[0]: object missing required field `images`"),
        ("wall", {"total": 1.0}, "$.wall: object missing required field `sampling`"),
        ("peaks", [{"device": "tpu"}], "$.peaks[0].device: invalid enum value 'tpu'"),
        ("made_up", 1, "$.made_up: unknown field"),
        ("options", [], "$.options: expected `object`, got `array`"),
        ("complete", "yes", "$.complete: expected `bool`, got `str`"),
    ],
)
def test_an_invalid_field_is_named_with_its_path(
    make_results: MakeResults, tmp_path: Path, field: str, wrong: Any, complaint: str
) -> None:
    (tmp_path / "results.json").write_text(json.dumps({**json.loads(to_json(make_results(CELL))), field: wrong}))
    with pytest.raises(ResultsError) as caught:
        load_results(tmp_path)
    assert caught.value.message == f"{tmp_path / 'results.json'} is not valid at {complaint}"
    assert caught.value.hint == "run the bench again"


@pytest.mark.parametrize(
    ("place", "wrong", "complaint"),
    [
        (("cells", 3, "batch_size"), "4", "$.cells[3].batch_size: expected `int | null`, got `str`"),
        (("cells", 3, "samples_s"), [0.1, None], "$.cells[3].samples_s[1]: expected `float`, got `null`"),
        (("cells", 3, "parity", "made_up"), 1, "$.cells[3].parity.made_up: unknown field"),
        (("model", "spec", "in_channels"), 0, "$.model.spec: in_channels is 0"),
    ],
)
def test_an_invalid_field_within_a_cell_is_named_with_its_path(
    tmp_path: Path, place: tuple[Any, ...], wrong: Any, complaint: str
) -> None:
    values = target = json.loads(SAVED.read_text())
    for key in place[:-1]:
        target = target[key]
    target[place[-1]] = wrong
    (tmp_path / "results.json").write_text(json.dumps(values))
    with pytest.raises(ResultsError) as caught:
        load_results(tmp_path)
    assert caught.value.message.endswith(f" is not valid at {complaint}")


@pytest.mark.parametrize("version", [0, SCHEMA_VERSION + 1, "new"])
def test_another_schema_version_is_refused_by_naming_both(tmp_path: Path, version: object) -> None:
    (tmp_path / "results.json").write_text(json.dumps({"schema_version": version}))
    with pytest.raises(ResultsError, match=f"has schema version {version}; .* reads {SCHEMA_VERSION}"):
        load_results(tmp_path)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="does not exist"):
        load_results(tmp_path)
    (tmp_path / "results.json").mkdir()
    with pytest.raises(ResultsError, match="cannot be read: "):
        load_results(tmp_path)
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ResultsError, match="is not JSON: "):
        load_results(tmp_path / "binary.json")


# The schema


@pytest.fixture
def full(make_results: Callable[..., Results], make_parity: Callable[..., Parity]) -> Results:
    """Results in which everything is known, and some of it is infinite."""
    parity = make_parity(
        max_abs_diff=float("inf"),
        flip_distance_px=2.5,
        classes=(ClassParity(index=0, iou=None, worst_iou=None, worst_image=""),),
        truth=TruthScore(iou=1, dice=1, reference_iou=1, reference_dice=1, loss=0.0, loss_low=-0.1, loss_high=0.1),
        per_image=(image_parity("a", flipped_pixels=1, max_diff=float("inf"), mean_diff=0.1),),
    )
    cell = Cell(
        runtime="fake",
        precision="fp32",
        batch_size=1,
        status="ok",
        samples_s=(0.5,) * 8,
        rounds=(Round(number=0, runs=8, load=0.1, gpu_mhz=1980),),
        import_s=0.1,
        load_s=0.2,
        first_s=0.3,
        facts={"threads": "2"},
        host_memory=HostMemory(1, 2, 3, "made up", 4),
        device_memory=DeviceMemory(peak_bytes=5, steady_bytes=6, method="NVML", counter_bytes=7, counter="torch"),
        parity=parity,
    )
    failed = Cell(
        runtime="tensorrt", precision="fp16", batch_size=None, status="unavailable", reason="no", remedy="yes"
    )
    results = make_results(cell, failed, budget_s=9.0, min_iou=0.9, calibration="photos")
    gpu = Gpu(name="H200", memory_bytes=2**37, driver="595", clock_mhz=1980.0)
    return dataclasses.replace(
        results,
        machine=dataclasses.replace(results.machine, gpus=(gpu,), load_average_1min=None, variables={"A": "b"}),
        noise=(NoiseProbe(change="batch", images=8, max_abs_diff=float("inf"), flipped_pixels=0),),
        load_after=0.25,
        wall=Wall(total=10.0, sampling=4.0, loading=3.0, export=0.0, reference=2.0),
    )


def test_the_schema_is_a_valid_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_results_are_as_the_schema_says(full: Results, make_results: Callable[..., Results]) -> None:
    VALIDATOR.validate(json.loads(to_json(full)))
    VALIDATOR.validate(json.loads(to_json(make_results())))


@pytest.mark.parametrize("file", [SAVED, *COMMITTED], ids=lambda file: file.parent.name)
def test_a_committed_bench_is_as_the_schema_says_and_complete(file: Path) -> None:
    VALIDATOR.validate(json.loads(file.read_text()))
    assert load_results(str(file)).complete


# Objects whose keys are not fields of ours.
_NAMED_BY_OTHERS = {
    "facts", "versions", "variables", "derived", "arguments", "float_layers", "engine_options", "stages",
}  # fmt: skip


def _places(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to all objects with fields of ours within JSON."""
    inner: list[tuple[Any, ...]] = []
    if isinstance(value, dict):
        inner = [path for key, each in value.items() for path in _places(each, (*place, key))]
        return inner if place and place[-1] in _NAMED_BY_OTHERS else [place, *inner]
    if isinstance(value, list):
        inner = [path for i, each in enumerate(value) for path in _places(each, (*place, i))]
    return inner


def test_a_field_too_many_or_too_few_is_refused_wherever_it_is(full: Results) -> None:
    whole = json.loads(to_json(full))
    places = _places(whole)
    assert {place[-1] for place in places if place} >= {"options", "spec", "machine", "parity", "truth", "wall"}
    for place in places:
        more = copy.deepcopy(whole)
        target = more
        for key in place:
            target = target[key]
        target["made_up"] = 1
        assert not VALIDATOR.is_valid(more), place
        del target["made_up"]
        target.pop(next(iter(target)))
        assert not VALIDATOR.is_valid(more), place


@pytest.mark.parametrize(
    ("place", "wrong"),
    [
        (("schema_version",), SCHEMA_VERSION + 1),
        (("complete",), "yes"),
        (("cells", 0, "status"), "fine"),
        (("cells", 0, "samples_s"), ["1"]),
        (("cells", 0, "batch_size"), 1.5),
        (("options", "precisions"), ["fp8"]),
        (("machine", "versions"), {"torch": 2}),
        (("wall", "total"), None),
    ],
)
def test_a_wrong_value_is_refused(full: Results, place: tuple[Any, ...], wrong: Any) -> None:
    whole = json.loads(to_json(full))
    target = whole
    for key in place[:-1]:
        target = target[key]
    assert target[place[-1]] != wrong
    target[place[-1]] = wrong
    assert not VALIDATOR.is_valid(whole)


def test_the_schema_file_is_current() -> None:
    current = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    assert current == SCHEMA, "run: uv run python docs/results_schema.py"


def test_the_documentation_has_the_current_fields() -> None:
    text = TABLES_FILE.read_text(encoding="utf-8")
    assert text == with_tables(text, SCHEMA), "run: uv run python docs/results_schema.py"
    for name in [field.name for field in dataclasses.fields(Cell)] + ["counter_bytes", "loss_low", "cpu_quota"]:
        assert f"| `{name}` |" in text


def test_every_field_has_a_meaning() -> None:
    for definition in [SCHEMA, *SCHEMA["$defs"].values()]:
        for name, field in definition["properties"].items():
            assert field["description"], name


def test_units_are_told() -> None:
    cell, wall = SCHEMA["$defs"]["Cell"]["properties"], SCHEMA["$defs"]["Wall"]["properties"]
    assert cell["load_s"]["x-unit"] == cell["samples_s"]["x-unit"] == wall["sampling"]["x-unit"] == "s"
    assert SCHEMA["$defs"]["HostMemory"]["properties"]["peak_bytes"]["x-unit"] == "bytes"
    assert "x-unit" not in cell["status"]


def test_numbers_have_units() -> None:
    for record in [SCHEMA, *SCHEMA["$defs"].values()]:
        for name, field in record["properties"].items():
            kinds = [kind.get("type") for kind in field.get("anyOf", [field])]
            assert "number" not in kinds or field["x-unit"], name


def test_a_docstring_gives_meaning_and_unit() -> None:
    @dataclasses.dataclass(frozen=True)
    class Made:
        """One.

        Attributes:
            copy_bytes_per_s: how many ``bytes``,
                over two lines; None for none.
            height (px): of the image.
        """

        copy_bytes_per_s: float | None
        height: int

    assert documented_fields(Made) == {
        "copy_bytes_per_s": ("how many `bytes`, over two lines; null for none.", "bytes/s"),
        "height": ("of the image.", "px"),
    }


def test_a_field_without_a_meaning_is_an_error() -> None:
    @dataclasses.dataclass
    class Silent:
        """No attributes."""

        a: str

    with pytest.raises(KeyError):
        documented_fields(Silent)


def test_a_real_bench_is_as_the_schema_says(plain_onnx: Path, script: Callable[..., None], tmp_path: Path) -> None:
    script(out_of_memory_from=2)
    results = quick_bench(
        model=plain_onnx,
        runtimes=["fake", "onnxruntime-cpu"],
        batch_sizes=(1, 2),
        num_images=2,
        output=tmp_path / "out",
    )
    assert {cell.status for cell in results.cells} == {"ok", "out of memory"}
    VALIDATOR.validate(json.loads((tmp_path / "out" / "results.json").read_text()))
    assert json.loads(to_json(results))["cells"][0]["parity"]["per_image"]


# Verdicts and cells


@pytest.mark.parametrize(
    ("precision", "flips", "verdict"),
    [("fp32", 4, "edges only"), ("fp32", 5, "FAILED"), ("tf32", 5, "edges only"), ("int8", 1000, "edges only")],
)
def test_a_verdict_is_by_the_limits_of_the_precision(
    make_results: MakeResults, make_parity: MakeParity, precision: Precision, flips: int, verdict: str
) -> None:
    """Of 262,144 pixels; fp32 allows a share of 1e-5, or 4."""
    cell = dataclasses.replace(CELL, precision=precision, parity=make_parity(flipped_pixels=flips))
    assert verdict_of(make_results(cell), cell) == verdict


def test_a_verdict_is_by_the_gates_of_the_user_where_given(make_results: MakeResults, make_parity: MakeParity) -> None:
    cell = dataclasses.replace(CELL, parity=make_parity(flipped_pixels=1000, worst_iou=0.9, mean_iou=0.9))
    assert verdict_of(make_results(cell), cell) == "FAILED"
    lenient = make_results(cell, max_flips=0.01, min_iou=0.5)
    assert verdict_of(lenient, cell) == "edges only"
    assert verdict_of(make_results(cell, max_flips=0.001, min_iou=0.5), cell) == "FAILED"
    assert limits_for("fp32", make_results(cell).options) == LIMITS["fp32"]


def test_a_cell_without_masks_has_no_verdict(make_results: MakeResults) -> None:
    assert verdict_of(make_results(CELL), CELL) is None


def test_cells_are_found_by_variant_and_batch_where_they_were_measured(make_results: MakeResults) -> None:
    device = dataclasses.replace(CELL, scope="device")
    tf32 = dataclasses.replace(CELL, precision="tf32")
    failed = dataclasses.replace(CELL, batch_size=2, status="failed", samples_s=())
    results = make_results(CELL, device, tf32, failed)
    assert results.cell(Variant("onnxruntime-cuda"), 1) is CELL
    assert results.cell(Variant("onnxruntime-cuda", scope="device"), 1) is device
    assert results.cell(Variant("onnxruntime-cuda", "tf32"), 1) is tf32
    assert results.cell(Variant("onnxruntime-cuda"), 2) is None
    assert results.cell(Variant("onnxruntime-cpu"), 1) is None


def test_subclasses_of_plain_types_are_written_as_these(make_results: MakeResults, tmp_path: Path) -> None:
    class Version(str):
        """As ``torch.__version__`` is."""

        __slots__ = ()

    results = make_results(dataclasses.replace(CELL, facts={"torch": Version("2.15")}, load_s=np.float64(0.25)))
    path = tmp_path / "results.json"
    path.write_text(to_json(results))
    assert load_results(path).cells[0].facts == {"torch": "2.15"}
    assert load_results(path).cells[0].load_s == 0.25


def test_results_as_a_data_frame_have_the_columns_of_the_table() -> None:
    results = load_results(SAVED)
    frame = results.to_dataframe()
    assert len(frame) == len(results.cells)
    assert {"runtime", "batch_size", "images_per_s"} <= set(frame.columns)
    measured = frame[frame["status"] == "ok"]
    assert measured["images_per_s"].min() > 0


def test_the_best_cell_under_a_limit() -> None:
    results = load_results(SAVED)
    best = results.best()
    assert best
    assert best.seconds_per_image == min(cell.seconds_per_image for cell in results.cells if cell.status == "ok")
    limit = best.median_s * 0.99
    faster = [cell for cell in results.cells if cell.status == "ok" and cell.median_s <= limit]
    assert results.best(max_latency_s=limit) == min(faster, key=lambda cell: cell.seconds_per_image, default=None)
    assert results.best(max_latency_s=1e-9) is None
    assert len(repr(best)) < 2000  # a notebook shows it: single calls and images are left out


# Damaged files


def _readers(tmp_path: Path) -> list[Callable[[bytes], object]]:
    """Return what the commands do with a results file: show it, compare it with a good one, and a history of both."""
    good = load_results(SAVED)
    file, page = tmp_path / "b" / "results.json", tmp_path / "page.html"
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    (tmp_path / "a" / "results.json").write_bytes(SAVED.read_bytes())
    every = ("weights", "spec", "inputs", "host", "threads", "memory_profile")

    def show(content: bytes) -> None:
        file.write_bytes(content)
        results = load_results(file)
        document = bench_document(results, Constraints())
        terminal.to_text(document, columns=80)
        markdown.to_markdown(document.without("all"))
        csv_json.to_csv(csv_json.bench_rows(results))
        write_bench_page(results, file.parent, page, constraints=Constraints(max_latency_s=1.0, min_iou=0.9))
        runs = labelled([(tmp_path / "a", good), (tmp_path / "b", results)])
        comparison_document(compare(good, results, allow=every), runs)
        side_by_side_document(side_by_side(runs))

    def history(content: bytes) -> None:
        file.write_bytes(content)
        found = read_history(tmp_path)
        assert len(found.skipped) + sum(len(group.runs) for group in found.groups) == 2
        csv_json.to_json(csv_json.history_data(found))
        history_document(found)

    return [show, history]


@few_or_many
def test_damaged_results_are_results_errors_and_passed_over_in_a_history(tmp_path: Path, count: int) -> None:
    read_all(damaged_json(SAVED.read_bytes(), count), *_readers(tmp_path))


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        ("cells.24.samples_s", ["fast"], r"\$\.cells\[24\]\.samples_s\[0\]: expected `float`, got `str`"),
        ("cells.24.samples_s", [0.0], r"\$\.cells\[24\]\.samples_s\[0\]: expected `float` > "),
        ("cells.24.batch_size", 0, r"\$\.cells\[24\]\.batch_size: expected `int` >= 1"),
        ("cells.24.batch_size", 7, r"\$\.cells\[24\]\.batch_size: 7 is not in options\.batch_sizes"),
        ("cells.24.rounds.0.runs", 10**6, r"\$\.cells\[24\]\.rounds: "),
        ("cells.24.runtime", "abacus", r"\$\.cells\[24\]\.runtime: .*'abacus'"),
        ("created", "yesterday", r"\$\.created: 'yesterday' is not a date"),
        ("wall.total", 0, r"\$\.wall\.total: expected `float` > "),
        ("model.spec.arguments", {"a": [[[[[[[[[1]]]]]]]]]}, r"\$\.model\.spec: arguments are nested too deeply"),
        ("load_after", float("nan"), "NaN is not a number"),
    ],
)
def test_a_field_of_a_wrong_value_is_named(tmp_path: Path, place: str, value: object, told: str) -> None:
    values = json.loads((SAVED.parent / "eight.json").read_bytes())
    inner = values
    *keys, last = place.split(".")
    for key in keys:
        inner = inner[int(key) if key.isdigit() else key]
    inner[last] = value
    (tmp_path / "results.json").write_text(json.dumps(values))
    with pytest.raises(ResultsError, match=told):
        load_results(tmp_path)


@few_or_many
def test_a_damaged_list_of_recent_benches_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "artifacts").mkdir()

    def read(data: bytes) -> None:
        (tmp_path / "artifacts" / "benches.json").write_bytes(data)
        for folder in recent_benches():
            (folder / "results.json").exists()

    read_all(damaged_json(b'["/a/b", "/c"]', count), read)


def test_a_pipe_is_no_results_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "results.json")
    with pytest.raises(ResultsError, match="not a regular file"):
        load_results(tmp_path)
