"""The schema says what is in the file, no more and no less."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jsonschema
import pytest

from segx.results import schema as schema_module
from segx.results.schema import DOCS_FILE, SCHEMA_FILE, described, documented, results_schema
from segx.results.store import SCHEMA_VERSION, load_results, to_json
from segx.results.types import (
    Cell,
    ClassParity,
    DeviceMemory,
    Gpu,
    HostMemory,
    ImageParity,
    NoiseProbe,
    Parity,
    Results,
    Round,
    TruthScore,
    Wall,
)
from tests.benching import quick_bench

HERE = Path(__file__).parent
SCHEMA = results_schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


@pytest.fixture
def full(make_results: Callable[..., Results], make_parity: Callable[..., Parity]) -> Results:
    """Results in which everything is known, and some of it is infinite."""
    parity = make_parity(
        max_abs_diff=float("inf"),
        flip_distance_px=2.5,
        classes=(ClassParity(index=0, iou=None, worst_iou=None, worst_image=""),),
        truth=TruthScore(iou=1, dice=1, reference_iou=1, reference_dice=1, loss=0.0, loss_low=-0.1, loss_high=0.1),
        per_image=(
            ImageParity(
                name="a", flipped_pixels=1, benign_flips=0, iou=1.0, dice=1.0, max_diff=float("inf"), mean_diff=0.1
            ),
        ),
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
        machine=dataclasses.replace(results.machine, gpus=(gpu,), load_average_1min=float("nan"), variables={"A": "b"}),
        noise=(NoiseProbe(change="batch", images=8, max_abs_diff=float("inf"), flipped_pixels=0),),
        load_after=0.25,
        wall=Wall(total=10.0, sampling=4.0, loading=3.0, export=0.0, reference=2.0),
    )


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_results_are_as_the_schema_says(full: Results, make_results: Callable[..., Results]) -> None:
    VALIDATOR.validate(json.loads(to_json(full)))
    VALIDATOR.validate(json.loads(to_json(make_results())))


@pytest.mark.parametrize("version", [1, 2])
def test_older_results_that_are_written_again_are_as_the_schema_says(version: int) -> None:
    VALIDATOR.validate(json.loads(to_json(load_results(HERE / f"results_version_{version}.json"))))


# Objects whose keys are no fields of ours.
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


def test_the_schema_file_is_of_the_current_dataclasses() -> None:
    current = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    assert current == SCHEMA, "run: uv run python -m segx.results.schema"


def test_the_documentation_has_the_current_fields() -> None:
    text = DOCS_FILE.read_text(encoding="utf-8")
    assert text == documented(text, SCHEMA), "run: uv run python -m segx.results.schema"
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


@dataclasses.dataclass(frozen=True)
class Inner:
    """One.

    Attributes:
        copy_bytes_per_s: how many,
            over two lines; None for none.
    """

    copy_bytes_per_s: float | None


@dataclasses.dataclass(frozen=True)
class Outer:
    """Another.

    Attributes:
        device: of the two.
        inner: see ``Inner``.
    """

    device: Literal["cpu", "cuda"]
    inner: tuple[Inner, ...] = ()


def test_new_dataclasses_need_no_more_than_their_docstrings() -> None:
    definitions: dict[str, Any] = {}
    outer = schema_module._of_class(Outer, definitions)
    assert outer["properties"]["device"] == {"enum": ["cpu", "cuda"], "description": "of the two."}
    assert definitions["Inner"]["properties"]["copy_bytes_per_s"] == {
        "type": ["number", "null"],
        "description": "how many, over two lines; null for none.",
        "x-unit": "bytes/s",
    }


def test_a_field_without_meaning_or_unit_is_an_error() -> None:
    @dataclasses.dataclass
    class Silent:
        """No attributes."""

        a: str

    @dataclasses.dataclass
    class Unitless:
        """One.

        Attributes:
            size: of something.
        """

        size: float

    with pytest.raises(KeyError):
        described(Silent)
    with pytest.raises(KeyError, match=r"Unitless\.size has no unit"):
        schema_module._unit("Unitless.size", float)


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
