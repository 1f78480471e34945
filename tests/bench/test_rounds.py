"""Taking turns, on a machine that drifts."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence

import pytest

from segx.analysis.stats import Interval
from segx.bench.rounds import run_rounds


class Machine:
    """Gets slower with every call made on it."""

    def __init__(self, drift: float) -> None:
        self.slowness = 1.0
        self.drift = drift
        self.log: list[str] = []


class Cell:
    """A cell of known speed that wants so many rounds."""

    def __init__(self, name: str, machine: Machine, call_s: float, rounds: int) -> None:
        self.name = name
        self.samples_s: list[float] = []
        self.numbers: list[int] = []
        self.rivals: list[int] = []
        self.broke = False
        self._machine, self._call_s, self._rounds = machine, call_s, rounds

    failed = False

    @property
    def standing(self) -> Interval | None:
        """Known to 1 % after two turns."""
        return Interval(self._call_s * 0.99, self._call_s * 1.01) if len(self.samples_s) > 1 else None

    def sample_round(self, number: int) -> float:
        self._machine.log.append(self.name)
        self.numbers.append(number)
        self.samples_s.append(self._call_s * self._machine.slowness)
        self._machine.slowness *= 1 + self._machine.drift
        return self.samples_s[-1]

    def is_done(self, rivals: Sequence[Interval | None]) -> bool:
        self.rivals.append(len(rivals))
        return len(self.samples_s) >= self._rounds

    def out_of_budget(self) -> None:
        self.broke = True


def test_every_cell_gets_its_rounds_and_is_done_once() -> None:
    machine = Machine(0.0)
    cells = [Cell(name, machine, 1.0, rounds) for name, rounds in (("a", 1), ("b", 5), ("c", 3))]
    done: list[str] = []
    run_rounds(cells, shuffle=random.Random(0), when_done=lambda cell: done.append(cell.name))
    assert [len(cell.samples_s) for cell in cells] == [1, 5, 3]
    assert sorted(done) == ["a", "b", "c"]
    assert done[0] == "a"
    assert done[-1] == "b"


def test_each_round_takes_everyone_in_an_order_that_varies_and_repeats_with_the_seed() -> None:
    def orders(seed: int) -> list[tuple[str, ...]]:
        machine = Machine(0.0)
        cells = [Cell(name, machine, 1.0, 30) for name in "abc"]
        run_rounds(cells, shuffle=random.Random(seed), when_done=lambda _: None)
        return [tuple(machine.log[i : i + 3]) for i in range(0, 90, 3)]

    assert all(sorted(order) == ["a", "b", "c"] for order in orders(0))
    assert len(set(orders(0))) > 3
    assert orders(0) == orders(0)
    assert orders(0) != orders(1)


def test_drift_that_fools_a_fixed_order_is_cancelled() -> None:
    """Two equally fast cells; the machine becomes half as fast meanwhile."""

    def ratio(machine: Machine, cells: list[Cell]) -> float:
        first, second = (statistics.median(cell.samples_s) for cell in cells)
        assert machine.slowness > 1.9
        return second / first

    machine = Machine(0.0035)
    cells = [Cell(name, machine, 1.0, 100) for name in "ab"]
    for cell in cells:
        for number in range(100):
            cell.sample_round(number)
    assert ratio(machine, cells) > 1.3

    machine = Machine(0.0035)
    cells = [Cell(name, machine, 1.0, 100) for name in "ab"]
    run_rounds(cells, shuffle=random.Random(0), when_done=lambda _: None)
    assert ratio(machine, cells) == pytest.approx(1.0, abs=0.01)


def turns(calls_s: dict[str, float], budget_s: float | None, rounds: int = 1000) -> dict[str, Cell]:
    machine = Machine(0.0)
    cells = {name: Cell(name, machine, call_s, rounds) for name, call_s in calls_s.items()}
    done: list[str] = []
    run_rounds(
        list(cells.values()), shuffle=random.Random(0), when_done=lambda cell: done.append(cell.name), budget_s=budget_s
    )
    assert sorted(done) == sorted(calls_s)
    return cells


def test_a_budget_is_kept_by_all_together() -> None:
    cells = turns({"a": 1.0, "b": 1.0}, budget_s=10.0)
    assert [len(cell.samples_s) for cell in cells.values()] == [5, 5]
    assert all(cell.broke for cell in cells.values())


def test_a_budget_never_leaves_a_cell_empty() -> None:
    assert [len(cell.samples_s) for cell in turns({"a": 1.0, "b": 9.0}, budget_s=0.0).values()] == [1, 1]


def test_with_a_budget_the_clearly_dominated_have_fewer_turns() -> None:
    cells = turns({"best": 1.0, "close": 1.05, "slow": 2.0}, budget_s=100.0)
    best, close, slow = (len(cell.samples_s) for cell in cells.values())
    assert best == close
    assert slow < best / 3
    assert cells["slow"].numbers[:2] == [0, 1]  # until it is known to be slow
    assert all(number % 4 == 0 for number in cells["slow"].numbers[2:])


def test_without_a_budget_all_have_their_turns() -> None:
    cells = turns({"best": 1.0, "slow": 2.0}, budget_s=None, rounds=20)
    assert [cell.numbers for cell in cells.values()] == [list(range(20))] * 2


def test_rivals_are_named_only_while_there_is_a_budget_to_spend_on_them() -> None:
    assert set(turns({"a": 1.0, "b": 1.0}, budget_s=None, rounds=5)["a"].rivals) == {0}
    assert turns({"a": 1.0, "b": 1.0}, budget_s=100.0, rounds=5)["a"].rivals[-1] == 1
