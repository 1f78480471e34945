"""Cold start against speed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segx.analysis.recommend import break_even, cold_start_s
from segx.results.types import Cell


def cell(cold_s: float | None, seconds_per_image: float, size: int = 1) -> Cell:
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


def payoff_images(ours: Cell, theirs: Cell) -> float | None:
    """From which number of images on it is ahead for good."""
    found = break_even(ours, theirs)
    return {"always": 0.0, "after": found.images}.get(found.relation)


def test_cold_start_is_import_load_and_first_call() -> None:
    assert cold_start_s(cell(4.0, 1.0)) == 4.0
    assert cold_start_s(cell(None, 1.0)) is None


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
def test_when_it_pays(
    ours: tuple[float | None, float],
    theirs: tuple[float | None, float],
    relation: str,
    images: float | None,
    paid_after: float | None,
) -> None:
    found = break_even(cell(*ours), cell(*theirs))
    assert found.relation == relation
    assert found.images == (None if images is None else pytest.approx(images))
    assert payoff_images(cell(*ours), cell(*theirs)) == (None if paid_after is None else pytest.approx(paid_after))


def test_batches_count_by_their_images() -> None:
    assert payoff_images(cell(5.0, 0.1, size=8), cell(1.0, 0.2, size=2)) == pytest.approx(40.0)


@given(*[st.floats(0.01, 100.0)] * 4)
def test_beyond_that_number_the_cell_is_ahead_and_below_it_is_not(
    ours_s: float, ours_per_image: float, theirs_s: float, theirs_per_image: float
) -> None:
    ours, theirs = cell(ours_s, ours_per_image), cell(theirs_s, theirs_per_image)
    images = payoff_images(ours, theirs)

    def lead(count: float) -> float:
        return (theirs_s + count * theirs_per_image) - (ours_s + count * ours_per_image)

    if images is None:
        assert lead(1e9) <= 1e-6 * (theirs_s + 1e9 * theirs_per_image)
    else:
        assert lead(2 * images + 1) >= 0
        assert images == 0 or lead(images / 2) <= 0
