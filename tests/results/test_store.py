"""Results between versions and through JSON, beyond what their tables show."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from segx.analysis.figures import limits_for, verdict_of
from segx.errors import ResultsError
from segx.masks.agreement import LIMITS
from segx.results.store import load_results, to_json
from segx.results.types import Cell, DeviceMemory, HostMemory, NoiseProbe, Parity, Peaks, Results, Round, Wall, Work
from segx.runtimes import Precision, Variant
from tests.forms import to_text

MakeResults = Callable[..., Results]
MakeParity = Callable[..., Parity]

HERE = Path(__file__).parent
CELL = Cell(runtime="onnxruntime-cuda", precision="fp32", batch_size=1, status="ok", samples_s=(0.5,) * 8)


def _again(results: Results, folder: Path) -> Results:
    (folder / "results.json").write_text(to_json(results))
    return load_results(folder)


def _older(version: int, folder: Path, change: Callable[[dict[str, Any]], None]) -> Results:
    """A file of that version with something changed."""
    values = json.loads((HERE / f"results_version_{version}.json").read_text())
    change(values)
    (folder / "results.json").write_text(json.dumps(values))
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


def test_a_machine_that_does_not_tell_its_load_can_still_be_shown(make_results: MakeResults, tmp_path: Path) -> None:
    results = make_results(CELL, runtimes=("onnxruntime-cuda",))
    host = dataclasses.replace(results.machine, load_average_1min=math.nan)
    results = dataclasses.replace(results, machine=host)
    assert to_text(_again(results, tmp_path)) == to_text(results)


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("cells", None),
        ("cells", [[]]),
        ("cells", [{}]),
        ("machine", {}),
        ("model", {"spec": []}),
        ("noise", [{"change": "made up"}]),
        ("wall", {"total": 1.0}),
        ("peaks", [{"device": "cpu"}]),
        ("made_up", 1),
        ("options", []),
    ],
)
def test_a_field_that_is_not_what_it_should_be_is_damage(
    make_results: MakeResults, tmp_path: Path, field: str, wrong: Any
) -> None:
    (tmp_path / "results.json").write_text(json.dumps({**json.loads(to_json(make_results(CELL))), field: wrong}))
    with pytest.raises(ResultsError, match="damaged"):
        load_results(tmp_path)


# Older versions


@pytest.mark.parametrize(("tf32", "precisions"), [(False, ("fp32",)), (True, ("tf32",))])
@pytest.mark.parametrize("version", [1, 2])
def test_the_switch_for_tf32_has_become_a_precision(
    version: int, tf32: bool, precisions: tuple[str, ...], tmp_path: Path
) -> None:
    loaded = _older(version, tmp_path, lambda values: values["options"].update(tf32=tf32))
    assert loaded.options.precisions == precisions
    assert (loaded.options.scopes, loaded.options.memory_profile) == (("forward",), "default")


def test_rounds_of_the_second_version_are_numbered(tmp_path: Path) -> None:
    loaded = _older(2, tmp_path, lambda _: None)
    measured = [cell for cell in loaded.cells if cell.measured]
    for cell in measured:
        assert [turn.number for turn in cell.rounds] == list(range(len(cell.rounds)))
        assert {turn.load for turn in cell.rounds} == {None}


def test_memory_of_the_second_version_has_no_phases(tmp_path: Path) -> None:
    def put_on_gpu(values: dict[str, Any]) -> None:
        values["cells"][-1]["device_memory"] = {"peak_bytes": 9, "method": "NVML"}

    cell = _older(2, tmp_path, put_on_gpu).cells[-1]
    assert cell.device_memory == DeviceMemory(peak_bytes=9, steady_bytes=None, method="NVML")
    assert cell.host_memory
    assert cell.host_memory.loaded_bytes is None


@pytest.mark.parametrize("version", [1, 2])
def test_of_older_flips_none_is_known_to_be_benign(version: int, tmp_path: Path) -> None:
    def flip(values: dict[str, Any]) -> None:
        values["cells"][-1]["parity"] |= {"flipped_pixels": 3, "worst_iou": 0.99995, "max_abs_diff": 1e-4}

    loaded = _older(version, tmp_path, flip)
    cell = loaded.cells[-1]
    assert cell.parity
    assert (cell.parity.real_flips, cell.parity.noise_band, cell.parity.per_image) == (3, 0.0, ())
    assert cell.parity.mean_iou == cell.parity.worst_iou == 0.99995
    assert cell.parity.mean_dice == pytest.approx(2 * 0.99995 / 1.99995)
    assert verdict_of(loaded, cell) == "degraded"


@pytest.mark.parametrize("version", [1, 2])
def test_an_older_infinite_difference_is_still_broken(version: int, tmp_path: Path) -> None:
    loaded = _older(version, tmp_path, lambda values: values["cells"][-1]["parity"].update(max_abs_diff=None))
    cell = loaded.cells[-1]
    assert cell.parity
    assert cell.parity.max_abs_diff == cell.parity.mean_abs_diff == math.inf
    assert verdict_of(loaded, cell) == "broken"


@pytest.mark.parametrize("version", [1, 2])
def test_what_was_upgraded_is_saved_in_the_newest_version(version: int, tmp_path: Path) -> None:
    loaded = _older(version, tmp_path, lambda _: None)
    assert json.loads(to_json(loaded))["schema_version"] == 4
    assert _again(loaded, tmp_path) == loaded


def test_of_the_third_version_no_ceiling_is_known(make_results: MakeResults, tmp_path: Path) -> None:
    values = json.loads(to_json(make_results(CELL)))
    values["schema_version"] = 3
    del values["peaks"], values["model"]["work"]
    values["wall"] = {"total": 10.0, "sampling": 4.0, "loading": 3.0, "export": 0.0, "reference": 2.0}
    (tmp_path / "results.json").write_text(json.dumps(values))
    loaded = load_results(tmp_path)
    assert (loaded.peaks, loaded.model.work) == ((), None)
    assert loaded.wall
    assert (loaded.wall.peaks, loaded.wall.overhead) == (0.0, pytest.approx(0.1))
    assert _again(loaded, tmp_path) == loaded


# Verdicts and cells


@pytest.mark.parametrize(
    ("precision", "flips", "verdict"),
    [("fp32", 2, "degraded"), ("fp32", 3, "broken"), ("tf32", 3, "degraded"), ("int8", 1000, "degraded")],
)
def test_a_verdict_is_by_the_limits_of_the_precision(
    make_results: MakeResults, make_parity: MakeParity, precision: Precision, flips: int, verdict: str
) -> None:
    """Of 262,144 pixels; fp32 allows a share of 1e-5."""
    cell = dataclasses.replace(CELL, precision=precision, parity=make_parity(flipped_pixels=flips))
    assert verdict_of(make_results(cell), cell) == verdict


def test_a_verdict_is_by_the_gates_of_the_user_where_given(make_results: MakeResults, make_parity: MakeParity) -> None:
    cell = dataclasses.replace(CELL, parity=make_parity(flipped_pixels=1000, worst_iou=0.9, mean_iou=0.9))
    assert verdict_of(make_results(cell), cell) == "broken"
    lenient = make_results(cell, max_flips=0.01, min_iou=0.5)
    assert verdict_of(lenient, cell) == "degraded"
    assert verdict_of(make_results(cell, max_flips=0.001, min_iou=0.5), cell) == "broken"
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
