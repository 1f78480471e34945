"""What to deploy under constraints, how certain that is, and what would change it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from segx.analysis.figures import needed_bytes
from segx.analysis.recommend import (
    Constraints,
    Decision,
    Pick,
    break_even,
    cold_start_s,
    decide,
    export_command,
    fit_cells,
)
from segx.reporting.document import Card, text
from segx.reporting.prose import card, exclusions, limits
from segx.results.settings import differences
from segx.results.types import Cell, HostMemory, Parity, Results, TruthScore
from tests import builders

MakeCell = Callable[..., Cell]
MakeParity = Callable[..., Parity]
MakeResults = Callable[..., Results]


def plain_cell(runtime: str, batch_size: int, seconds_per_image: float, mebibytes: int = 100, **changes: Any) -> Cell:
    made = Cell(
        runtime=runtime,
        precision="fp32",
        batch_size=batch_size,
        status="ok",
        samples_s=(seconds_per_image * batch_size,) * 10,
        host_memory=HostMemory(0, 0, mebibytes * 2**20, "made up"),
    )
    return dataclasses.replace(made, **changes)


def pick_of(results: Results, **limits: Any) -> Pick:
    pick = decide(results, Constraints(**limits)).pick
    assert pick
    return pick


def test_the_fastest_cell_is_picked_with_the_command_that_makes_its_file(make_results: MakeResults) -> None:
    cells = (
        plain_cell("pytorch-cpu", 1, 0.4, 50),
        plain_cell("onnxruntime-cpu", 8, 0.1),
        plain_cell("openvino-cpu", 1, 0.15, precision="int8"),
    )
    results = make_results(*cells)
    assert pick_of(results).cell is cells[1]
    commands = [export_command(cell, results) for cell in cells]
    assert commands == [
        "",
        "segx export --weights /models/w.pth",
        "segx export --weights /models/w.pth --precision int8 --engine openvino",
    ]
    assert pick_of(results).command == commands[1]


def test_a_browser_is_recommended_only_where_nothing_else_was_measured(make_results: MakeResults) -> None:
    native, web = plain_cell("onnxruntime-cpu", 1, 0.1, 200), plain_cell("onnxruntime-web", 1, 0.5, 50)
    pick = pick_of(make_results(native, web))
    assert pick.cell is native
    assert web not in [alternative.cell for alternative in pick.alternatives]
    assert decide(make_results(native, web), Constraints(max_memory_bytes=100 << 20)).pick is None
    assert pick_of(make_results(web)).cell is web


def test_openvino_computes_its_fp32_file_in_other_precisions(make_results: MakeResults) -> None:
    cells = [plain_cell("openvino-cpu", 1, 0.05, precision=precision) for precision in ("bf16", "fp16")]
    results = make_results(*cells)
    expected = "segx export --weights /models/w.pth --engine openvino"
    assert [export_command(cell, results) for cell in cells] == [expected, expected]


@pytest.mark.parametrize(("larger", "chosen"), [(0.0961, 1), (0.0949, 8)])
def test_of_cells_within_5_percent_the_smaller_batch_is_picked(
    make_results: MakeResults, larger: float, chosen: int
) -> None:
    pick = pick_of(make_results(plain_cell("openvino-cpu", 1, 0.1), plain_cell("onnxruntime-cpu", 8, larger)))
    assert pick.cell.batch_size == chosen


def test_of_cells_as_fast_at_the_same_batch_the_better_masks_are_picked(
    make_results: MakeResults, make_parity: MakeParity
) -> None:
    changed = plain_cell("openvino-cpu", 1, 0.1, precision="int8", parity=make_parity(flipped_pixels=9))
    same = plain_cell("onnxruntime-cpu", 1, 0.104, parity=make_parity())
    assert pick_of(make_results(changed, same)).cell is same


def test_failed_cells_and_broken_masks_are_never_recommended(make_results: MakeResults) -> None:
    results = make_results(
        plain_cell("onnxruntime-cpu", 1, 0.2),
        plain_cell("openvino-cpu", 1, 0.1, status="parity broken"),
        plain_cell("fake", 1, 0.0001, scope="device"),  # its images still have to get there
        plain_cell("openvino-cpu", 1, 0.1, stopped="interrupted"),  # before its masks were judged
    )
    pick = pick_of(results)
    assert (pick.cell.runtime, pick.alternatives) == ("onnxruntime-cpu", ())
    assert decide(make_results(plain_cell("openvino-cpu", 1, 0.1, status="parity broken"))).pick is None


def test_ties_are_listed(make_results: MakeResults) -> None:
    noisy = (0.19, 0.2, 0.21, 0.18, 0.22, 0.2, 0.19, 0.21)
    results = make_results(
        plain_cell("onnxruntime-cpu", 1, 0.2, samples_s=noisy),
        plain_cell("openvino-cpu", 1, 0.2, samples_s=tuple(s * 0.99 for s in noisy)),
        plain_cell("pytorch-cpu", 1, 0.4),
    )
    pick = pick_of(results)
    assert pick.cell.runtime == "openvino-cpu"
    assert [(str(tie.variant), tie.batch_size) for tie in pick.ties] == [("onnxruntime-cpu:fp32", 1)]


MIB = 2**20


def card_of(results: Results, **limits: Any) -> Card:
    decision = decide(results, Constraints(**limits))
    assert decision.pick
    return card(decision.pick, decision, "pytorch-cpu:fp32")


def sentences(decision: Decision) -> list[str]:
    found = exclusions(decision)
    if decision.pick:
        made = card(decision.pick, decision, "pytorch-cpu:fp32")
        found += [made.gain.text, *(told for _, told in (*made.facts, *made.more))]
    return found


@pytest.fixture
def cell(make_parity: MakeParity) -> Callable[..., Cell]:
    def make(
        runtime: str,
        batch_size: int,
        seconds_per_image: float,
        mebibytes: int | None = 100,
        iou: float = 1.0,
        cold_s: float = 1.0,
        spread: float = 0.0,
        **changes: Any,
    ) -> Cell:
        seconds = seconds_per_image * batch_size
        flipped = 0 if iou == 1.0 else 50
        made = Cell(
            runtime=runtime,
            precision="fp32",
            batch_size=batch_size,
            status="ok",
            samples_s=tuple(seconds * (1 + spread * step) for step in (-1, -0.5, 0, 0, 0, 0, 0.5, 1, 0)),
            import_s=cold_s,
            load_s=0.0,
            first_s=0.0,
            host_memory=None if mebibytes is None else HostMemory(0, 0, mebibytes * MIB, "made up"),
            parity=make_parity(
                flipped_pixels=flipped, benign_flips=flipped // 5, worst_iou=iou, mean_iou=1 - (1 - iou) / 4
            ),
        )
        return dataclasses.replace(made, **changes)

    return make


def usual(cell: MakeCell) -> tuple[Cell, ...]:
    """PyTorch small and slow; ONNX Runtime faster with the batch; OpenVINO int8 fastest, large and inexact."""
    return (
        cell("pytorch-cpu", 1, 0.40, 50),
        cell("pytorch-cpu", 8, 0.30, 300),
        cell("onnxruntime-cpu", 1, 0.20, 120, cold_s=0.5),
        cell("onnxruntime-cpu", 8, 0.15, 900, cold_s=0.5),
        cell("openvino-cpu", 1, 0.12, 150, iou=0.99, cold_s=3.0, precision="int8"),
        cell("openvino-cpu", 8, 0.10, 700, iou=0.99, cold_s=3.0, precision="int8"),
    )


def named(cell: Cell | None) -> tuple[str, int | None]:
    assert cell
    return cell.runtime, cell.batch_size


# Choice


def purposes(pick: Pick) -> dict[str, tuple[str, int | None]]:
    return {alternative.purpose: named(alternative.cell) for alternative in pick.alternatives}


def test_alternatives_serve_other_purposes_better(make_results: MakeResults, cell: MakeCell) -> None:
    results = make_results(*usual(cell))
    pick = pick_of(results)
    assert named(pick.cell) == ("openvino-cpu", 8)
    assert purposes(pick) == {
        "identical": ("onnxruntime-cpu", 8),
        "memory": ("pytorch-cpu", 1),
        "latency": ("openvino-cpu", 1),
    }
    assert decide(results).excluded == ()
    assert fit_cells(results) == list(results.cells)
    assert pick.without_limits is None


def test_what_starts_sooner_is_an_alternative_for_few_images(make_results: MakeResults, cell: MakeCell) -> None:
    results = make_results(cell("openvino-cpu", 1, 0.1, cold_s=3.0), cell("onnxruntime-cpu", 1, 0.2, cold_s=1.0))
    (few,) = pick_of(results).alternatives
    assert (few.purpose, named(few.cell)) == ("few images", ("onnxruntime-cpu", 1))
    assert few.images == pytest.approx(20, abs=1)


def test_a_faster_cell_with_a_larger_batch_is_an_alternative(make_results: MakeResults, cell: MakeCell) -> None:
    pick = pick_of(make_results(cell("openvino-cpu", 1, 0.1), cell("openvino-cpu", 4, 0.096, 140)))
    assert named(pick.cell) == ("openvino-cpu", 1)
    assert purposes(pick) == {"throughput": ("openvino-cpu", 4)}


def test_what_is_as_good_in_every_respect_has_no_alternative(make_results: MakeResults, cell: MakeCell) -> None:
    pick = pick_of(make_results(cell("onnxruntime-cpu", 1, 0.1, 100), cell("pytorch-cpu", 1, 0.2, 96)))
    assert pick.alternatives == ()


@pytest.mark.parametrize(
    ("limits", "throughput"),
    [
        ({"max_latency_s": 1.0}, ("openvino-cpu", 8)),
        ({"max_latency_s": 0.5}, ("openvino-cpu", 1)),
        ({"max_memory_bytes": 700 * MIB}, ("openvino-cpu", 8)),
        ({"max_memory_bytes": 700 * MIB - 1}, ("openvino-cpu", 1)),
        ({"min_iou": 0.99}, ("openvino-cpu", 8)),
        ({"min_iou": 0.999}, ("onnxruntime-cpu", 8)),
        ({"min_iou": 0.999, "max_memory_bytes": 500 * MIB}, ("onnxruntime-cpu", 1)),
        ({"min_iou": 0.999, "max_memory_bytes": 60 * MIB, "max_latency_s": 0.4}, ("pytorch-cpu", 1)),
    ],
)
def test_limits_decide_the_pick(
    make_results: MakeResults, cell: MakeCell, limits: dict[str, Any], throughput: tuple[str, int]
) -> None:
    pick = pick_of(make_results(*usual(cell)), **limits)
    assert named(pick.cell) == throughput
    assert (pick.without_limits is None) == (throughput == ("openvino-cpu", 8))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    latency=st.none() | st.floats(0.05, 4.0),
    memory=st.none() | st.integers(10 * MIB, 1000 * MIB),
    iou=st.none() | st.floats(0.9, 1.0),
)
def test_a_pick_meets_every_limit_and_nothing_that_does_is_better(
    make_results: MakeResults, cell: MakeCell, latency: float | None, memory: int | None, iou: float | None
) -> None:
    cells = usual(cell)
    results = make_results(*cells)
    constraints = Constraints(max_latency_s=latency, max_memory_bytes=memory, min_iou=iou)
    decision = decide(results, constraints)

    def fits(one: Cell) -> bool:
        assert needed_bytes(one) is not None
        assert one.parity
        return (
            (latency is None or one.median_s <= latency)
            and (memory is None or needed_bytes(one) <= memory)
            and (iou is None or one.parity.worst_iou >= iou)
        )

    fit = [one for one in cells if fits(one)]
    assert fit_cells(results, constraints) == fit
    assert {id(exclusion.cell) for exclusion in decision.excluded} == {id(one) for one in cells if not fits(one)}
    if pick := decision.pick:
        assert fits(pick.cell)
        assert all(fits(alternative.cell) for alternative in pick.alternatives)
        assert pick.cell.seconds_per_image * 0.95 <= min(one.seconds_per_image for one in fit)
        assert any(one.parity and not one.parity.flipped_pixels for one in fit) == (
            pick.verdict == "identical" or "identical" in purposes(pick)
        )
    assert (decision.pick is None) == (not fit)
    assert sentences(decision)


def test_unknown_figures_meet_no_limit(make_results: MakeResults, cell: MakeCell) -> None:
    results = make_results(cell("onnxruntime-cpu", 1, 0.1, None, parity=None))
    assert len(fit_cells(results)) == 1
    assert fit_cells(results, Constraints(max_memory_bytes=10**12)) == []
    assert fit_cells(results, Constraints(min_iou=0.0)) == []


def test_broken_masks_and_interrupted_cells_are_excluded(make_results: MakeResults, cell: MakeCell) -> None:
    broken = cell("openvino-cpu", 1, 0.01, iou=0.5, status="parity broken")
    interrupted = cell("onnxruntime-cpu", 1, 0.02, parity=None, stopped="interrupted")
    decision = decide(make_results(broken, interrupted, cell("pytorch-cpu", 1, 0.4)), Constraints(min_iou=0.4))
    assert decision.pick
    assert named(decision.pick.cell) == ("pytorch-cpu", 1)
    assert [(e.cell.runtime, e.limit) for e in decision.excluded] == [
        ("openvino-cpu", "parity"),
        ("onnxruntime-cpu", "unfinished"),
        ("onnxruntime-cpu", "masks"),
    ]
    assert decision.pick.without_limits is None


# Gain and masks


def test_the_gain_is_over_pytorch_at_its_own_fastest_batch_size(make_results: MakeResults, cell: MakeCell) -> None:
    pick = pick_of(make_results(*usual(cell)))
    assert named(pick.base) == ("pytorch-cpu", 8)
    assert pick.gain
    assert pick.gain.ratio == pytest.approx(10.0 / 3.33)  # as displayed
    assert pick.gain.interval


def test_without_pytorch_there_is_no_gain(make_results: MakeResults, cell: MakeCell) -> None:
    results = make_results(cell("onnxruntime-cpu", 1, 0.1))
    assert (pick_of(results).gain, pick_of(results).base) == (None, None)
    assert card_of(results).gain == text("PyTorch was not measured", "muted")


@pytest.mark.parametrize("sizes", [(1,), (1, 8)])
def test_pytorch_is_not_compared_with_itself(make_results: MakeResults, cell: MakeCell, sizes: tuple[int, ...]) -> None:
    times = {1: 0.1, 8: 0.098}
    made = card_of(make_results(*(cell("pytorch-cpu", size, times[size]) for size in sizes)))
    assert made.gain == text("This is PyTorch itself", "muted")
    assert "PyTorch" not in dict(made.more)
    assert "Next best" not in dict(made.more)


@pytest.mark.parametrize(
    ("require", "chosen"), [("edges", "openvino-cpu"), ("noise", "onnxruntime-cpu"), ("identical", "onnxruntime-cpu")]
)
def test_picks_meet_the_requirement_on_masks(
    make_results: MakeResults, cell: MakeCell, require: Any, chosen: str
) -> None:
    decision = decide(make_results(*usual(cell)), Constraints(require=require))
    assert decision.pick
    assert decision.pick.cell.runtime == chosen
    excluded = {exclusion.cell.runtime for exclusion in decision.excluded if exclusion.limit == "required"}
    assert excluded == ({"openvino-cpu"} if chosen != "openvino-cpu" else set())
    assert ("The requirement of masks" in " ".join(exclusions(decision))) == bool(excluded)


def test_the_requirement_of_the_bench_holds_unless_another_is_given(make_results: MakeResults, cell: MakeCell) -> None:
    results = make_results(*usual(cell), require="identical")
    decision = decide(results, Constraints(max_latency_s=9.0))
    assert decision.pick
    assert decision.pick.cell.runtime == "onnxruntime-cpu"
    assert limits(decision.constraints)[-1] == "masks identical to the reference's"
    found = results.best()
    assert found
    assert found.runtime == "onnxruntime-cpu"
    other = decide(results, Constraints(require="edges"))
    assert other.pick
    assert other.pick.cell.runtime == "openvino-cpu"
    assert not differences(results, make_results(*usual(cell)))


def test_worse_masks_are_never_recommended(make_results: MakeResults, cell: MakeCell) -> None:
    """By the true masks, even if the gate is met."""
    score = TruthScore(
        iou=0.9, dice=0.95, reference_iou=0.95, reference_dice=0.97, loss=0.05, loss_low=0.04, loss_high=0.06
    )
    cells = [
        dataclasses.replace(each, parity=dataclasses.replace(each.parity, truth=score, images=8))
        if each.runtime == "openvino-cpu" and each.parity
        else each
        for each in usual(cell)
    ]
    decision = decide(make_results(*cells))
    assert decision.pick
    assert decision.pick.cell.runtime == "onnxruntime-cpu"
    assert "openvino-cpu" not in {alternative.cell.runtime for alternative in decision.pick.alternatives}
    assert "A worse overlap with the true masks excludes openvino-cpu:int8" in " ".join(exclusions(decision))
    assert pick_of(make_results(*cells, max_loss=0.07)).cell.runtime == "openvino-cpu"


# Rivals


def test_the_runner_up_is_the_next_variant(make_results: MakeResults, cell: MakeCell) -> None:
    results = make_results(*usual(cell))
    assert named(pick_of(results).runner_up) == ("onnxruntime-cpu", 8)
    assert dict(card_of(results).more)["Next best"] == "onnxruntime-cpu:fp32, batch 8: 1.50x slower"


@pytest.mark.parametrize(
    ("spread", "seconds", "told"), [(0.2, 0.11, "no measurable difference"), (0.0, 0.101, "as fast")]
)
def test_a_tie_is_not_called_slower(
    make_results: MakeResults, cell: MakeCell, spread: float, seconds: float, told: str
) -> None:
    cells = cell("onnxruntime-cpu", 1, 0.1, spread=spread), cell("openvino-cpu", 1, seconds, spread=spread)
    assert dict(card_of(make_results(*cells)).more)["Next best"] == f"openvino-cpu:fp32, batch 1: {told}"


# Sentences


def test_the_sentences_of_a_decision(make_results: MakeResults, cell: MakeCell) -> None:
    decision = decide(make_results(*usual(cell)), Constraints(max_latency_s=1.0, min_iou=0.9))
    assert decision.pick
    made = card(decision.pick, decision, "pytorch-cpu:fp32")
    assert (made.variant, made.batch) == ("openvino-cpu:int8", "batch 8")
    assert made.figures == ("800 ms/call", "10.0 images/s", "700 MiB")
    assert made.gain == text("3.0x PyTorch", "good")
    assert made.facts == (("Masks", "edges only, 0.019% of pixels"),)
    assert made.more == (
        (
            "Changed pixels",
            "50 of 262,144; 10 within the reference's own rounding, the others at most 1 px from an outline",
        ),
        ("PyTorch", "fp32, batch 8, its fastest: 3.33 images/s"),
        ("Sure?", "±0.0% within this run; between runs machines often differ by more"),
        ("Next best", "onnxruntime-cpu:fp32, batch 1: 2.0x slower"),
    )
    assert [(option.purpose, option.variant, option.batch, option.figures) for option in made.options] == [
        ("identical masks", "onnxruntime-cpu:fp32", "batch 1", ("200 ms", "5.00 images/s", "120 MiB")),
        ("least memory", "pytorch-cpu:fp32", "batch 1", ("50 MiB", "400 ms", "2.50 images/s")),
        ("shortest waits", "openvino-cpu:int8", "batch 1", ("120 ms", "8.33 images/s", "150 MiB")),
    ]
    assert exclusions(decision) == [
        (
            "The limit of 1 s per call excludes pytorch-cpu:fp32, onnxruntime-cpu:fp32 at batch 8 "
            "(the nearest has 1.2 s)."
        )
    ]


def test_a_pick_changed_by_a_limit_names_the_pick_without_it(make_results: MakeResults, cell: MakeCell) -> None:
    told = " ".join(sentences(decide(make_results(*usual(cell)), Constraints(min_iou=0.999))))
    assert "without them openvino-cpu:int8, batch 8, 10.0 images/s" in told
    assert "The limit of 0.999 on the IoU of the worst image excludes openvino-cpu:int8 at batch 1, 8" in told
    assert "(the nearest has 0.9900)" in told


@pytest.mark.parametrize(("spread", "told"), [(0.0, "As fast as"), (0.5, "No difference from PyTorch beyond noise")])
def test_noise_is_not_taken_for_equality(make_results: MakeResults, cell: MakeCell, spread: float, told: str) -> None:
    ours, theirs = cell("openvino-cpu", 1, 0.1, spread=spread), cell("pytorch-cpu", 1, 0.1, spread=spread)
    assert told in card_of(make_results(ours, theirs)).gain.text


def test_changes_without_an_outline_near_them_are_counted(make_results: MakeResults, cell: MakeCell) -> None:
    blank = builders.image_parity("a.png", flipped_pixels=3)
    edge = builders.image_parity("b.png", flipped_pixels=1, flip_distance_px=2.24)
    ours = dataclasses.replace(cell("openvino-cpu", 1, 0.1), parity=builders.parity(blank, edge))
    (told,) = (words for title, words in card_of(make_results(ours)).more if title == "Changed pixels")
    assert told == "4 of 131,072; 3 where the reference has no outline, the others at most 2.3 px from an outline"


def test_a_latency_that_may_miss_its_limit_says_so(make_results: MakeResults, cell: MakeCell) -> None:
    results = make_results(cell("onnxruntime-cpu", 1, 0.1, spread=0.2))
    assert dict(card_of(results, max_latency_s=0.101).facts)["Limits"].startswith("a call may take longer than 101 ms")
    assert "Limits" not in dict(card_of(results, max_latency_s=0.5).facts)


@pytest.mark.parametrize(
    ("limits", "culprit"),
    [
        ({"max_latency_s": 0.001}, "The limit of 1 ms per call excludes them all (the nearest has 120 ms)."),
        (
            {"max_memory_bytes": MIB, "max_latency_s": 1.0},
            "The limit of 1 MiB of memory excludes them all (the nearest has 50 MiB).",
        ),
    ],
)
def test_if_nothing_fits_the_excluding_limits_are_named(
    make_results: MakeResults, cell: MakeCell, limits: dict[str, Any], culprit: str
) -> None:
    decision = decide(make_results(*usual(cell)), Constraints(**limits))
    assert decision.pick is None
    first, *rest = sentences(decision)
    assert first == "Nothing fits: all 6 measured cells miss a limit."
    assert culprit in rest
    assert [first, *rest] == exclusions(decision)


def test_limits_that_exclude_all_cells_only_together(make_results: MakeResults, cell: MakeCell) -> None:
    results = make_results(cell("onnxruntime-cpu", 1, 0.1, 500), cell("pytorch-cpu", 1, 0.4, 50))
    first, *rest = sentences(decide(results, Constraints(max_latency_s=0.2, max_memory_bytes=100 * MIB)))
    assert first == "Nothing fits: all 2 measured cells miss a limit."
    assert len(rest) == 2


def test_no_measured_cell_is_reported(make_results: MakeResults) -> None:
    assert sentences(decide(make_results())) == [
        "Nothing can be recommended: no cell was measured in the forward scope."
    ]


def test_too_few_calls_are_reported(make_results: MakeResults, cell: MakeCell) -> None:
    made = card_of(make_results(cell("onnxruntime-cpu", 1, 0.1, samples_s=(0.1, 0.1))))
    assert dict(made.more)["Sure?"] == "too few rounds to tell how uncertain the time is"


def timed_cell(cold_s: float | None, seconds_per_image: float, size: int = 1) -> Cell:
    return Cell(
        runtime="onnxruntime-cpu",
        precision="fp32",
        batch_size=size,
        status="ok",
        samples_s=(seconds_per_image * size,) * 4,
        import_s=None if cold_s is None else cold_s / 2,
        load_s=cold_s and cold_s / 4,
        first_s=cold_s and cold_s / 4,
    )


def test_cold_start_is_import_load_and_first_call() -> None:
    assert cold_start_s(timed_cell(4.0, 1.0)) == 4.0
    assert cold_start_s(timed_cell(None, 1.0)) is None


@pytest.mark.parametrize(
    ("ours", "theirs", "images"),
    [
        ((5.0, 0.1), (1.0, 0.2), 40.0),
        ((1.0, 0.2), (5.0, 0.1), math.inf),
        ((1.0, 0.1), (5.0, 0.2), 0.0),
        ((1.0, 0.1), (1.0, 0.1), 0.0),
        ((5.0, 0.2), (1.0, 0.1), math.inf),
        ((5.0, 0.1), (1.0, 0.1), math.inf),
        ((None, 0.1), (1.0, 0.2), None),
        ((1.0, 0.1), (None, 0.2), None),
    ],
)
def test_break_even(ours: tuple[float | None, float], theirs: tuple[float | None, float], images: float | None) -> None:
    found = break_even(timed_cell(*ours), timed_cell(*theirs))
    assert found == (None if images is None else pytest.approx(images))


def test_break_even_counts_images_not_batches() -> None:
    assert break_even(timed_cell(5.0, 0.1, size=8), timed_cell(1.0, 0.2, size=2)) == pytest.approx(40.0)


@given(*[st.floats(0.01, 100.0)] * 4)
def test_beyond_that_number_the_cell_is_ahead_and_below_it_is_not(
    ours_s: float, ours_per_image: float, theirs_s: float, theirs_per_image: float
) -> None:
    ours, theirs = timed_cell(ours_s, ours_per_image), timed_cell(theirs_s, theirs_per_image)
    images = break_even(ours, theirs)

    def lead(count: float) -> float:
        return (theirs_s + count * theirs_per_image) - (ours_s + count * ours_per_image)

    assert images is not None
    if math.isinf(images):
        assert lead(1e9) <= 1e-6 * (theirs_s + 1e9 * theirs_per_image)
    else:
        assert lead(2 * images + 1) >= 0
        assert images == 0 or lead(images / 2) <= 0
