"""Taking turns, on a machine that drifts."""

from __future__ import annotations

import random
import statistics

import pytest

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
        self._machine, self._call_s, self._rounds = machine, call_s, rounds

    def sample_round(self) -> bool:
        self._machine.log.append(self.name)
        self.samples_s.append(self._call_s * self._machine.slowness)
        self._machine.slowness *= 1 + self._machine.drift
        return len(self.samples_s) < self._rounds


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
        while cell.sample_round():
            pass
    assert ratio(machine, cells) > 1.3

    machine = Machine(0.0035)
    cells = [Cell(name, machine, 1.0, 100) for name in "ab"]
    run_rounds(cells, shuffle=random.Random(0), when_done=lambda _: None)
    assert ratio(machine, cells) == pytest.approx(1.0, abs=0.01)
