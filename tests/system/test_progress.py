"""Progress on a stream, by a clock that only the test moves."""

from __future__ import annotations

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segx.system.progress import PlainLines, Progress, Work, progress_on


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Log:
    """Plain lines on a stream."""

    def __init__(self) -> None:
        self.stream = io.StringIO()
        self.clock = Clock()
        self.lines = PlainLines(self.stream, clock=self.clock)

    def after(self, seconds: float, done: float) -> list[str]:
        """Return the lines printed once ``done`` is reached, ``seconds`` later."""
        self.clock.now_s += seconds
        self.lines.reach(done)
        return self.printed

    @property
    def printed(self) -> list[str]:
        return self.stream.getvalue().splitlines()


@pytest.fixture
def log() -> Log:
    return Log()


def test_each_step_is_a_line_that_is_not_repeated(log: Log) -> None:
    for text in ("loading", "loading", "sampling", "sampling", "loading"):
        log.lines.say(text)
    assert log.printed == ["loading", "sampling", "loading"]


def test_the_time_left_follows_from_the_time_taken(log: Log) -> None:
    log.lines.expect(200)
    assert log.after(30, done=50) == ["25% done, about 1 min 30 s left"]
    assert log.after(30, done=150)[1:] == ["75% done, about 20 s left"]


def test_the_time_before_the_work_began_does_not_count(log: Log) -> None:
    log.clock.now_s += 3600
    log.lines.expect(100)
    assert log.after(20, done=50) == ["50% done, about 20 s left"]


def test_too_little_work_is_no_basis_for_the_time_left(log: Log) -> None:
    log.lines.expect(100)
    assert log.after(60, done=4) == ["4% done"]
    assert log.after(15, done=5)[1:] == ["5% done, about 23 min 45 s left"]


def test_more_work_does_not_start_the_clock_again(log: Log) -> None:
    log.lines.expect(50)
    log.clock.now_s += 20
    log.lines.expect(100)
    assert log.after(20, done=50) == ["50% done, about 40 s left"]


def test_it_is_not_printed_too_often(log: Log) -> None:
    log.lines.expect(100)
    for second in range(1, 61):
        log.after(1, done=second)
    assert len(log.printed) == 4  # every 15 s


def test_steps_are_printed_at_once_in_between(log: Log) -> None:
    log.lines.expect(100)
    log.after(15, done=10)
    log.lines.say("sampling")
    assert log.printed[1:] == ["sampling"]


@pytest.mark.parametrize("done", [0, 100, 101])
def test_nothing_is_printed_before_the_first_and_after_the_last_piece(log: Log, done: float) -> None:
    log.lines.expect(100)
    assert log.after(60, done=done) == []


def test_nothing_is_printed_without_a_total(log: Log) -> None:
    assert log.after(60, done=5) == []


@pytest.mark.parametrize(
    ("left_s", "words"),
    [(1, "1 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (61, "1 min 01 s"), (3599.9, "60 min 00 s")],
)
def test_durations_are_in_minutes_and_seconds(log: Log, left_s: float, words: str) -> None:
    log.lines.expect(600 + left_s)
    assert log.after(600, done=600)[0].endswith(f"about {words} left")


class Recorder(Progress):
    def __init__(self) -> None:
        self.totals: list[float] = []
        self.done: list[float] = []

    def expect(self, total: float) -> None:
        self.totals.append(total)

    def reach(self, done: float) -> None:
        self.done.append(done)


def test_parts_are_added_up() -> None:
    seen = Recorder()
    work = Work(seen)
    work.expect("reference", 10)
    work.expect(("fake", 1), 30)
    work.reach("reference", 0.5)
    work.reach(("fake", 1), 0.1)
    work.reach("reference", 1.0)
    work.reach(("fake", 1), 1.0)
    assert seen.totals == [10, 40]
    assert seen.done == pytest.approx([5, 8, 13, 40])


def test_expecting_a_part_again_replaces_its_amount() -> None:
    seen = Recorder()
    work = Work(seen)
    work.expect("a", 10)
    work.expect("a", 4)
    work.reach("a", 0.5)
    assert (seen.totals, seen.done) == ([10, 4], [2])


def test_unexpected_parts_are_ignored() -> None:
    seen = Recorder()
    work = Work(seen)
    work.expect("a", 10)
    work.reach("b", 1.0)
    work.reach("a", 0.5)
    assert seen.done == [0, 5]


def test_a_part_that_starts_again_takes_its_share_back() -> None:
    seen = Recorder()
    work = Work(seen)
    work.expect("a", 10)
    work.reach("a", 0.8)
    work.reach("a", 0.1)
    assert seen.done == pytest.approx([8, 1])


@given(
    st.dictionaries(st.integers(0, 5), st.floats(0, 1e6), min_size=1),
    st.lists(st.tuples(st.integers(0, 8), st.floats(0, 1))),
)
def test_the_amount_done_never_exceeds_the_total(amounts: dict[int, float], reached: list[tuple[int, float]]) -> None:
    seen = Recorder()
    work = Work(seen)
    for part, amount in amounts.items():
        work.expect(part, amount)
    for part, fraction in reached:
        work.reach(part, fraction)
    assert all(0 <= done <= seen.totals[-1] * (1 + 1e-12) for done in seen.done)
    for part in amounts:
        work.reach(part, 1.0)
    assert seen.done[-1] == pytest.approx(seen.totals[-1])


def test_a_pipe_gets_plain_lines() -> None:
    stream = io.StringIO()
    with progress_on(stream) as progress:
        progress.say("loading")
        progress.expect(10)
        progress.reach(5)
    assert stream.getvalue() == "loading\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar_that_disappears(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with progress_on(stream) as progress:
        progress.say("sampling pytorch-cpu")
        progress.expect(10)
        progress.reach(5)
    shown = stream.getvalue()
    assert "sampling pytorch-cpu" in shown
    assert "\x1b[2K" in shown  # erases its line
    assert "left" in shown


def test_a_terminal_that_cannot_move_its_cursor_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    with progress_on(stream) as progress:
        progress.say("loading")
    assert stream.getvalue() == "loading\n"


@pytest.mark.parametrize("columns", [80, 160])
def test_the_description_gives_way_and_nothing_else(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))
    stream = Terminal()
    with progress_on(stream) as progress:
        progress.say("predict " + "with a very long description " * 5)
        progress.expect(2000)
        progress.reach(1204, "1,204 of 2,000, 4.7 images/s, 3 failed")
    (last,) = [
        line
        for line in re.split(r"\r|\n", re.sub("\x1b\\[[^a-zA-Z]*[a-zA-Z]", "", stream.getvalue()))
        if "of 2,000" in line
    ][-1:]
    assert len(last.rstrip()) <= columns
    assert re.search(r"^pred.*… ━+.* 1,204 of 2,000, 4.7 images/s, 3 failed \d:\d\d:\d\d \S+ left", last)


def test_silence() -> None:
    progress = Progress()
    progress.say("loading")
    progress.expect(10)
    progress.reach(5)
