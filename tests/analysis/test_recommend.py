"""What to deploy under constraints, how certain that is, and what would change it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from segx.analysis.figures import needed_bytes
from segx.analysis.recommend import COSTS, Change, Constraints, Decision, break_even, cold_start_s, decide, fit_cells
from segx.reporting.prose import cards, exclusions
from segx.results.types import Cell, HostMemory, Parity, Results, TruthScore

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


def test_the_best_cell_is_picked_for_each_goal(make_results: MakeResults) -> None:
    results = make_results(
        plain_cell("pytorch-cpu", 1, 0.4, 50),
        plain_cell("onnxruntime-cpu", 1, 0.2),
        plain_cell("onnxruntime-cpu", 8, 0.1),
        plain_cell("openvino-cpu", 1, 0.15, precision="int8"),
    )
    throughput, latency, memory = decide(results).picks
    assert (throughput.cell.runtime, throughput.cell.batch_size) == ("onnxruntime-cpu", 8)
    assert latency.cell.runtime == "openvino-cpu"
    assert memory.cell.runtime == "pytorch-cpu"
    assert throughput.command == "segx export --weights /models/w.pth"
    assert latency.command == "segx export --weights /models/w.pth --precision int8 --engine openvino"
    assert memory.command == ""


def test_failed_cells_and_broken_masks_are_never_recommended(make_results: MakeResults) -> None:
    results = make_results(
        plain_cell("onnxruntime-cpu", 1, 0.2),
        plain_cell("openvino-cpu", 1, 0.1, status="parity broken"),
        plain_cell("fake", 1, 0.0001, scope="device"),  # its images still have to get there
        plain_cell("openvino-cpu", 1, 0.1, stopped="interrupted"),  # before its masks were judged
    )
    assert {choice.cell.runtime for choice in decide(results).picks} == {"onnxruntime-cpu"}
    assert decide(make_results(plain_cell("openvino-cpu", 1, 0.1, status="parity broken"))).picks == ()


def test_ties_are_listed(make_results: MakeResults) -> None:
    noisy = (0.19, 0.2, 0.21, 0.18, 0.22, 0.2, 0.19, 0.21)
    results = make_results(
        plain_cell("onnxruntime-cpu", 1, 0.2, samples_s=noisy),
        plain_cell("openvino-cpu", 1, 0.2, samples_s=tuple(s * 0.99 for s in noisy)),
        plain_cell("pytorch-cpu", 1, 0.4),
    )
    (throughput, *_) = decide(results).picks
    assert throughput.cell.runtime == "openvino-cpu"
    assert [tied.runtime for tied in throughput.ties] == ["onnxruntime-cpu"]
    assert [(str(tie.variant), tie.batch_size) for tie in throughput.ties] == [("onnxruntime-cpu:fp32", 1)]


MIB = 2**20


def sentences(decision: Decision) -> list[str]:
    told = [line for card in cards(decision) for line in (card.lead, *card.reasons, *card.changes)]
    return [*told, *exclusions(decision)]


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


def test_picks_without_limits(make_results: MakeResults, cell: MakeCell) -> None:
    results = make_results(*usual(cell))
    decision = decide(results)
    assert [(pick.goal, named(pick.cell)) for pick in decision.picks] == [
        ("throughput", ("openvino-cpu", 8)),
        ("latency", ("openvino-cpu", 1)),
        ("memory", ("pytorch-cpu", 1)),
    ]
    assert decision.excluded == ()
    assert fit_cells(results) == list(results.cells)
    assert all(pick.without_limits is None for pick in decision.picks)


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
    decision = decide(make_results(*usual(cell)), Constraints(**limits))
    pick = decision.pick("throughput")
    assert pick
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
    for pick in decision.picks:
        assert fits(pick.cell)
        comparable = [one for one in fit if pick.goal != "latency" or one.batch_size == 1]
        assert COSTS[pick.goal](pick.cell) == min(map(COSTS[pick.goal], comparable))
    assert (decision.pick("throughput") is None) == (not fit)
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
    assert {pick.cell.runtime for pick in decision.picks} == {"pytorch-cpu"}
    assert [(e.cell.runtime, e.limit) for e in decision.excluded] == [
        ("openvino-cpu", "parity"),
        ("onnxruntime-cpu", "unfinished"),
        ("onnxruntime-cpu", "masks"),
    ]
    assert all(pick.without_limits is None for pick in decision.picks)


# Gain and masks


def test_the_baseline_of_throughput_is_pytorch_at_its_best_and_of_latency_at_batch_1(
    make_results: MakeResults, cell: MakeCell
) -> None:
    decision = decide(make_results(*usual(cell)))
    throughput, latency, memory = decision.picks
    assert (throughput.baseline and throughput.baseline.batch_size) == 8
    assert throughput.gain
    assert throughput.gain.ratio == pytest.approx(3.0)
    assert throughput.gain.interval
    assert throughput.memory_ratio == pytest.approx(700 / 300)
    assert (latency.baseline and latency.baseline.batch_size) == 1
    assert latency.gain
    assert latency.gain.ratio == pytest.approx(0.4 / 0.12)
    assert memory.baseline is memory.cell
    assert memory.gain is None
    assert memory.memory_ratio is None


def test_without_pytorch_there_is_no_gain(make_results: MakeResults, cell: MakeCell) -> None:
    decision = decide(make_results(cell("onnxruntime-cpu", 1, 0.1)))
    assert {(pick.gain, pick.baseline) for pick in decision.picks} == {(None, None)}
    assert "PyTorch eager was not measured in this run" in " ".join(sentences(decision))


def test_the_verdict_is_that_of_the_bench(make_results: MakeResults, cell: MakeCell) -> None:
    decision = decide(make_results(*usual(cell)))
    assert [pick.verdict for pick in decision.picks] == ["edges only", "edges only", "identical"]


@pytest.mark.parametrize(
    ("require", "chosen"), [("edges", "openvino-cpu"), ("noise", "onnxruntime-cpu"), ("identical", "onnxruntime-cpu")]
)
def test_picks_meet_the_requirement_on_masks(
    make_results: MakeResults, cell: MakeCell, require: Any, chosen: str
) -> None:
    decision = decide(make_results(*usual(cell)), Constraints(require=require))
    assert {pick.cell.runtime for pick in decision.picks if pick.goal == "throughput"} == {chosen}
    excluded = {exclusion.cell.runtime for exclusion in decision.excluded if exclusion.limit == "required"}
    assert excluded == ({"openvino-cpu"} if chosen != "openvino-cpu" else set())
    assert ("The requirement of masks" in " ".join(exclusions(decision))) == bool(excluded)


def test_a_pick_that_is_not_identical_names_the_best_that_is(make_results: MakeResults, cell: MakeCell) -> None:
    picks = {pick.goal: pick for pick in decide(make_results(*usual(cell))).picks}
    assert named(picks["throughput"].identical) == ("onnxruntime-cpu", 8)
    assert named(picks["latency"].identical) == ("onnxruntime-cpu", 1)
    assert picks["memory"].identical is None


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
    assert "openvino-cpu" not in {pick.cell.runtime for pick in decision.picks}
    assert "A worse overlap with the true masks excludes openvino-cpu:int8" in " ".join(exclusions(decision))
    lenient = decide(make_results(*cells, max_loss=0.07))
    assert "openvino-cpu" in {pick.cell.runtime for pick in lenient.picks}


# Rivals


def test_the_runner_up_is_the_next_variant(make_results: MakeResults, cell: MakeCell) -> None:
    pick = decide(make_results(*usual(cell))).pick("throughput")
    assert pick
    assert named(pick.runner_up) == ("onnxruntime-cpu", 8)
    assert pick.behind == pytest.approx(0.5)
    assert pick.ties == ()


def test_a_tie_is_not_named_as_runner_up(make_results: MakeResults, cell: MakeCell) -> None:
    results = make_results(cell("onnxruntime-cpu", 1, 0.1, spread=0.2), cell("openvino-cpu", 1, 0.101, spread=0.2))
    decision = decide(results)
    pick = decision.pick("throughput")
    assert pick
    assert [tied.runtime for tied in pick.ties] == ["openvino-cpu"]
    text = " ".join(cards(decision)[0].reasons)
    assert "No measurable difference to openvino-cpu:fp32 at batch 1" in text
    assert "The next best variant" not in text


# What would change it


def changes_of(results: Results, goal: Any, constraints: Constraints | None = None) -> dict[str, Change]:
    pick = decide(results, constraints).pick(goal)
    assert pick
    return {change.condition: change for change in pick.changes}


def test_tighter_limits_and_fewer_images_change_the_pick(make_results: MakeResults, cell: MakeCell) -> None:
    found = changes_of(make_results(*usual(cell)), "throughput")
    assert found["latency below"].threshold == pytest.approx(0.8)
    assert named(found["latency below"].cell) == ("openvino-cpu", 1)
    assert found["memory below"].threshold == 700 * MIB
    assert named(found["memory below"].cell) == ("openvino-cpu", 1)
    assert found["masks above"].threshold == 0.99
    assert named(found["masks above"].cell) == ("onnxruntime-cpu", 8)
    # 2.5 s later and 0.05 s an image faster
    assert found["images below"].threshold == pytest.approx(50.0)
    assert named(found["images below"].cell) == ("onnxruntime-cpu", 8)


def test_what_a_change_says_comes_true(make_results: MakeResults, cell: MakeCell) -> None:
    results = make_results(*usual(cell))
    limits = {
        "latency below": lambda value: Constraints(max_latency_s=value * 0.999999),
        "memory below": lambda value: Constraints(max_memory_bytes=int(value) - 1),
        "masks above": lambda value: Constraints(min_iou=value + 1e-9),
    }
    for goal in ("throughput", "latency", "memory"):
        for condition, change in changes_of(results, goal).items():
            if condition in limits:
                pick = decide(results, limits[condition](change.threshold)).pick(goal)
                assert (pick and pick.cell) is change.cell, (goal, condition)


def test_a_limit_on_the_goal_itself_and_identical_masks_are_no_changes(
    make_results: MakeResults, cell: MakeCell
) -> None:
    results = make_results(cell("onnxruntime-cpu", 1, 0.1), cell("pytorch-cpu", 1, 0.2, 200))
    assert set(changes_of(results, "latency")) == {"memory below"}
    assert set(changes_of(results, "memory")) == {"latency below"}


def test_a_change_that_leaves_no_cell_says_so(make_results: MakeResults, cell: MakeCell) -> None:
    results = make_results(cell("onnxruntime-cpu", 1, 0.1))
    assert changes_of(results, "throughput")["memory below"].cell is None
    assert "no measured cell is left" in " ".join(sentences(decide(results)))


# Sentences


def test_the_sentences_of_a_decision(make_results: MakeResults, cell: MakeCell) -> None:
    decision = decide(make_results(*usual(cell)), Constraints(max_latency_s=1.0, min_iou=0.9))
    pick = decision.pick("throughput")
    assert pick
    card = cards(decision)[0]
    assert card.lead == "For throughput: openvino-cpu:int8 at batch 8, 10.00 images/s (95 % interval 10.00 to 10.00)."
    assert [*card.reasons, *card.changes] == [
        (
            "Compared with PyTorch: 3.00 times the images per second of PyTorch eager at batch 8 "
            "(95 % interval 3.00 to 3.00), 2.33 times its memory."
        ),
        (
            "Its masks: edges only; 50 of 262144 pixels differ, 40 of them by more than the reference's own noise; "
            "mean IoU 0.9975, worst image 0.9900 (b.png)."
        ),
        "The next best variant, onnxruntime-cpu:fp32 at batch 1, takes 100% longer.",
        "If the masks must be identical: onnxruntime-cpu:fp32 at batch 1, 5.00 images/s.",
        "If a call must take less than 800 ms: openvino-cpu:int8 at batch 1, 8.33 images/s.",
        "If memory must stay below 700 MiB: openvino-cpu:int8 at batch 1, 8.33 images/s.",
        "If the worst image must have an IoU above 0.9900: onnxruntime-cpu:fp32 at batch 1, 5.00 images/s.",
        "For fewer than 25 images in total, onnxruntime-cpu:fp32 at batch 1 finishes first, as it starts sooner.",
    ]
    assert exclusions(decision) == [
        (
            "The limit of 1.00 s per call excludes pytorch-cpu:fp32 at batch 8; onnxruntime-cpu:fp32 at batch 8 "
            "(the nearest has 1.20 s)."
        )
    ]


def test_a_pick_changed_by_a_limit_names_the_pick_without_it(make_results: MakeResults, cell: MakeCell) -> None:
    text = " ".join(sentences(decide(make_results(*usual(cell)), Constraints(min_iou=0.999))))
    assert "Without the limits it would be openvino-cpu:int8 at batch 8, 10.00 images/s." in text
    assert "The limit of 0.999 on the IoU of the worst image excludes openvino-cpu:int8 at batch 1, 8" in text
    assert "(the nearest has 0.9900)" in text


def test_a_latency_that_may_miss_its_limit_says_so(make_results: MakeResults, cell: MakeCell) -> None:
    results = make_results(cell("onnxruntime-cpu", 1, 0.1, spread=0.2))
    assert "It may miss the limit of 101 ms" in " ".join(sentences(decide(results, Constraints(max_latency_s=0.101))))
    assert "may miss" not in " ".join(sentences(decide(results, Constraints(max_latency_s=0.5))))


@pytest.mark.parametrize(
    ("limits", "culprit"),
    [
        ({"max_latency_s": 0.001}, "latency alone would exclude them all"),
        ({"max_memory_bytes": MIB, "max_latency_s": 1.0}, "memory alone would exclude them all"),
    ],
)
def test_if_nothing_fits_the_excluding_limits_are_named(
    make_results: MakeResults, cell: MakeCell, limits: dict[str, Any], culprit: str
) -> None:
    decision = decide(make_results(*usual(cell)), Constraints(**limits))
    assert decision.picks == ()
    first, *rest = sentences(decision)
    assert first == f"Nothing fits: all 6 measured cells miss a limit; {culprit}."
    assert [first, *rest] == exclusions(decision)
    assert rest


def test_limits_that_exclude_all_cells_only_together(make_results: MakeResults, cell: MakeCell) -> None:
    results = make_results(cell("onnxruntime-cpu", 1, 0.1, 500), cell("pytorch-cpu", 1, 0.4, 50))
    first, *rest = sentences(decide(results, Constraints(max_latency_s=0.2, max_memory_bytes=100 * MIB)))
    assert first == "Nothing fits: all 2 measured cells miss a limit."
    assert len(rest) == 2


def test_no_measured_cell_is_reported(make_results: MakeResults) -> None:
    assert sentences(decide(make_results())) == ["Nothing can be recommended: no cell was measured."]


def test_too_few_calls_are_reported(make_results: MakeResults, cell: MakeCell) -> None:
    text = " ".join(sentences(decide(make_results(cell("onnxruntime-cpu", 1, 0.1, samples_s=(0.1, 0.1))))))
    assert "too few calls for an interval" in text
    assert "too few calls to tell whether others are as good" in text


def test_iou_is_rounded_down(make_results: MakeResults, cell: MakeCell) -> None:
    text = " ".join(sentences(decide(make_results(cell("onnxruntime-cpu", 1, 0.1, iou=0.99999)))))
    assert "worst image 0.9999" in text
    assert "1.0000" not in text


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


def images_until_ahead(ours: Cell, theirs: Cell) -> float | None:
    """From which number of images on it is ahead for good."""
    found = break_even(ours, theirs)
    return {"always": 0.0, "after": found.images}.get(found.relation)


def test_cold_start_is_import_load_and_first_call() -> None:
    assert cold_start_s(timed_cell(4.0, 1.0)) == 4.0
    assert cold_start_s(timed_cell(None, 1.0)) is None


@pytest.mark.parametrize(
    ("ours", "theirs", "relation", "images", "paid_after"),
    [
        ((5.0, 0.1), (1.0, 0.2), "after", 40.0, 40.0),
        ((1.0, 0.2), (5.0, 0.1), "until", 40.0, None),
        ((1.0, 0.1), (5.0, 0.2), "always", None, 0.0),
        ((1.0, 0.1), (1.0, 0.1), "always", None, 0.0),
        ((5.0, 0.2), (1.0, 0.1), "never", None, None),
        ((5.0, 0.1), (1.0, 0.1), "never", None, None),
        ((None, 0.1), (1.0, 0.2), "unknown", None, None),
        ((1.0, 0.1), (None, 0.2), "unknown", None, None),
    ],
)
def test_break_even(
    ours: tuple[float | None, float],
    theirs: tuple[float | None, float],
    relation: str,
    images: float | None,
    paid_after: float | None,
) -> None:
    found = break_even(timed_cell(*ours), timed_cell(*theirs))
    assert found.relation == relation
    assert found.images == (None if images is None else pytest.approx(images))
    assert images_until_ahead(timed_cell(*ours), timed_cell(*theirs)) == (
        None if paid_after is None else pytest.approx(paid_after)
    )


def test_break_even_counts_images_not_batches() -> None:
    assert images_until_ahead(timed_cell(5.0, 0.1, size=8), timed_cell(1.0, 0.2, size=2)) == pytest.approx(40.0)


@given(*[st.floats(0.01, 100.0)] * 4)
def test_beyond_that_number_the_cell_is_ahead_and_below_it_is_not(
    ours_s: float, ours_per_image: float, theirs_s: float, theirs_per_image: float
) -> None:
    ours, theirs = timed_cell(ours_s, ours_per_image), timed_cell(theirs_s, theirs_per_image)
    images = images_until_ahead(ours, theirs)

    def lead(count: float) -> float:
        return (theirs_s + count * theirs_per_image) - (ours_s + count * ours_per_image)

    if images is None:
        assert lead(1e9) <= 1e-6 * (theirs_s + 1e9 * theirs_per_image)
    else:
        assert lead(2 * images + 1) >= 0
        assert images == 0 or lead(images / 2) <= 0
