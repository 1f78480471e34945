"""Speed-ups of cells made by hand: which rounds are paired, and which cell is the base."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segx.analysis.figures import (
    Speedup,
    half_width,
    interval_of,
    speedup,
    versus,
    versus_batch_1,
    versus_previous,
    versus_pytorch,
)
from segx.analysis.stats import Interval
from segx.results.types import Cell, Results, Round
from segx.runtimes import Precision, Scope

MakeResults = Callable[..., Results]


def _cell(
    by_round: Mapping[int, float] | float = 1.0,
    *,
    runtime: str = "onnxruntime-cuda",
    precision: Precision = "fp32",
    scope: Scope = "forward",
    batch_size: int = 1,
    runs: int = 3,
    stopped: str = "settled",
) -> Cell:
    """Seconds of its calls by the number of the round, or the same in eight rounds."""
    seconds = dict.fromkeys(range(8), by_round) if isinstance(by_round, float) else by_round
    return Cell(
        runtime=runtime,
        precision=precision,
        scope=scope,
        batch_size=batch_size,
        status="ok",
        # The median of a round is its second call.
        samples_s=tuple(second * factor for second in seconds.values() for factor in (0.9, 1.0, 1.7)[:runs]),
        rounds=tuple(Round(number=number, runs=runs) for number in seconds),
        stopped=stopped,
    )


def _ratio(found: Speedup | None) -> float:
    assert found
    return found.ratio


# Which rounds are paired


@given(
    st.sets(st.integers(0, 60), min_size=6, max_size=30),
    st.sets(st.integers(0, 60)),
    st.sets(st.integers(0, 60)),
    st.floats(0.1, 10),
    st.randoms(use_true_random=False),
)
def test_rounds_are_paired_by_their_number(
    common: set[int], ours: set[int], theirs: set[int], factor: float, drift: random.Random
) -> None:
    """The machine's speed differs in every round, and yet the ratio is known exactly."""
    pace = {number: drift.uniform(0.01, 100.0) for number in range(61)}
    theirs -= ours  # but for those that are common
    base = _cell({number: pace[number] for number in sorted(common | theirs)})
    cell = _cell({number: pace[number] / factor for number in sorted(common | ours)})
    found = speedup(base, cell, paired=True)
    assert found.interval
    assert found.interval.low == pytest.approx(found.interval.high)


@pytest.mark.parametrize("paired", [True, False])
def test_a_ratio_is_the_quotient_of_the_figures_that_are_shown(paired: bool) -> None:
    fast = _cell({number: 1.0 + number for number in range(9)})
    slow = _cell(dict.fromkeys(range(30), 10.0), batch_size=2)
    found = speedup(slow, fast, paired=paired)
    assert found.ratio == pytest.approx(slow.seconds_per_image / fast.seconds_per_image)
    assert found.interval
    assert found.interval.low < found.ratio < found.interval.high


def test_how_processes_differ_widens_the_interval() -> None:
    base, cell = _cell(2.0), _cell(1.0)
    shaky = dataclasses.replace(
        cell, process_sd=0.03, rounds=tuple(dataclasses.replace(r, process=r.number // 4) for r in cell.rounds)
    )
    halves = dataclasses.replace(base, process_sd=0.03, rounds=shaky.rounds)
    for paired in (True, False):
        plain, wide = speedup(base, cell, paired=paired).interval, speedup(halves, shaky, paired=paired).interval
        assert plain == Interval(2.0, 2.0)
        assert wide
        assert wide.high / wide.low > 1.1
    assert interval_of(cell) == Interval(1.0, 1.0)
    assert half_width(shaky) == pytest.approx(0.049, abs=0.005)


def test_too_few_common_rounds_give_a_ratio_without_an_interval() -> None:
    base, cell = _cell(dict.fromkeys(range(20), 2.0)), _cell(dict.fromkeys((0, 4, 8, 12, 16), 1.0))
    found = speedup(base, cell, paired=True)
    assert (found.ratio, found.interval) == (2.0, None)
    assert not found.tied


def test_ratios_are_per_image() -> None:
    found = speedup(_cell(1.0), _cell(2.0, batch_size=8), paired=False)
    assert found.ratio == pytest.approx(4.0)
    assert found.interval
    assert found.interval.low == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("interval", "tied"),
    [(Interval(0.9, 1.1), True), (Interval(1.0, 1.1), True), (Interval(1.01, 1.1), False), (None, False)],
)
def test_cells_are_tied_if_the_interval_contains_one(interval: Interval | None, tied: bool) -> None:
    assert Speedup(1.05, interval).tied is tied


# Which cell is the base


def test_the_baseline_is_pytorch_in_fp32_of_the_same_device_and_scope_at_its_best(
    make_results: MakeResults,
) -> None:
    baselines = [
        _cell(8.0, runtime="pytorch-cuda"),
        _cell(4.0, runtime="pytorch-cuda", scope="device"),
        _cell(6.0, runtime="pytorch-cuda", precision="tf32"),
        _cell(80.0, runtime="pytorch-cpu"),
        _cell(100.0, runtime="pytorch-cuda", batch_size=2),
        _cell(7.0, runtime="pytorch-cuda", batch_size=4, stopped="not settled"),
    ]
    cells = [
        _cell(1.0),
        _cell(1.0, precision="tf32"),
        _cell(1.0, scope="device"),
        _cell(1.0, scope="device", precision="tf32"),
        _cell(1.0, runtime="onnxruntime-cpu"),
        _cell(1.0, batch_size=2),
    ]
    results = make_results(*baselines, *cells)
    assert [_ratio(versus_pytorch(cell, results)) for cell in cells] == pytest.approx([8, 8, 4, 4, 80, 16])
    assert versus_pytorch(baselines[0], results) is None  # itself
    assert _ratio(versus_pytorch(baselines[2], results)) == pytest.approx(0.167 / 0.125)  # as displayed


def test_without_that_baseline_there_is_no_ratio(make_results: MakeResults) -> None:
    cell = _cell(1.0, scope="device")
    others = [_cell(8.0, runtime="pytorch-cuda"), _cell(8.0, runtime="pytorch-cuda", scope="device", precision="tf32")]
    assert versus_pytorch(cell, make_results(cell, *others)) is None


def test_a_failed_cell_is_no_baseline(make_results: MakeResults) -> None:
    failed = Cell(runtime="pytorch-cuda", precision="fp32", batch_size=1, status="out of memory")
    cell = _cell(1.0)
    assert versus_pytorch(cell, make_results(failed, cell)) is None


def test_batches_are_compared_within_their_variant(make_results: MakeResults) -> None:
    cells = [
        _cell(10.0),
        _cell(20.0, precision="tf32"),
        _cell(40.0, scope="device"),
        _cell(8.0, batch_size=4),
        _cell(8.0, batch_size=4, precision="tf32"),
        _cell(8.0, batch_size=4, scope="device"),
    ]
    results = make_results(*cells, batch_sizes=(1, 2, 4))
    assert [_ratio(versus_batch_1(cell, results)) for cell in cells[3:]] == pytest.approx([5, 10, 20])
    assert [_ratio(versus_previous(cell, results)) for cell in cells[3:]] == pytest.approx([5, 10, 20])
    assert [versus_batch_1(cell, results) for cell in cells[:3]] == [None] * 3
    assert [versus_previous(cell, results) for cell in cells[:3]] == [None] * 3


def test_the_previous_batch_is_the_nearest_that_was_measured(make_results: MakeResults) -> None:
    small, middle, large = _cell(1.0), _cell(1.5, batch_size=2), _cell(2.0, batch_size=8)
    failed = Cell(runtime="onnxruntime-cuda", precision="fp32", batch_size=4, status="crashed")
    results = make_results(small, middle, failed, large, batch_sizes=(1, 2, 4, 8))
    assert _ratio(versus_previous(large, results)) == pytest.approx(0.75 / 0.25)
    assert _ratio(versus_previous(middle, results)) == pytest.approx(1.0 / 0.75)


@pytest.mark.parametrize("order", [(2, 1, 8), (8, 2, 1), (1, 8, 2)])
def test_the_previous_batch_is_the_next_smaller_one_whatever_the_order_of_the_options(
    order: tuple[int, ...], make_results: MakeResults
) -> None:
    cells = {size: _cell(seconds, batch_size=size) for size, seconds in ((1, 1.0), (2, 1.5), (8, 2.0))}
    made = make_results(*(cells[size] for size in order))
    results = dataclasses.replace(made, options=dataclasses.replace(made.options, batch_sizes=order))
    assert versus_previous(cells[1], results) is None
    assert _ratio(versus_previous(cells[2], results)) == pytest.approx(1.0 / 0.75)
    assert _ratio(versus_previous(cells[8], results)) == pytest.approx(0.75 / 0.25)
    assert versus_batch_1(cells[1], results) is None
    assert _ratio(versus_batch_1(cells[2], results)) == pytest.approx(1.0 / 0.75)


def test_only_cells_of_one_batch_size_took_turns(make_results: MakeResults) -> None:
    """Drift cancels between cells that took turns; between batch sizes that are minutes apart, it does not."""
    pace = {number: 1.0 + 0.1 * number for number in range(16)}
    base = _cell(pace, runtime="pytorch-cuda")
    paired = _cell({number: second / 2 for number, second in pace.items()})
    later = _cell({number: second / 2 for number, second in pace.items()}, batch_size=2, runtime="pytorch-cuda")
    results = make_results(base, paired, later)
    same_rounds, other_rounds = versus(base, paired), versus_batch_1(later, results)
    assert same_rounds
    assert other_rounds
    assert same_rounds.interval == Interval(2.0, 2.0)
    assert other_rounds.interval
    assert other_rounds.interval.high - other_rounds.interval.low > 0.5


def test_results_without_rounds_are_not_paired(make_results: MakeResults) -> None:
    """As in files of the first version."""
    old = Cell(runtime="pytorch-cuda", precision="fp32", batch_size=1, status="ok", samples_s=(2.0,) * 9)
    cell = Cell(runtime="onnxruntime-cuda", precision="fp32", batch_size=1, status="ok", samples_s=(1.0,) * 7)
    assert versus_pytorch(cell, make_results(old, cell)) == Speedup(2.0, Interval(2.0, 2.0))
