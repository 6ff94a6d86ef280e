"""Which lines are due, which parts have a bar, and what bars look like."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from runner.cli.transfer_bars import Bars
from runner.cli.transfer_display import SILENCE_S, SPACING_S, Lines, label, shown_layers, stage
from tests.support.transfer_lines import MIB, layer, progress


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def lines(clock: Clock) -> Lines:
    return Lines("pull", "m", clock)


def said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_tenths_are_told_when_they_are_some_time_apart(
    lines: Lines, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    lines.show(progress(layer(0)))
    assert said(capsys) == ["pulling m: 0%, 0 B of 100.0 MiB"]
    clock.now_s += SPACING_S - 1
    lines.show(progress(layer(30 * MIB)))  # which was there: no rate of today
    assert said(capsys) == []
    clock.now_s += 0.99
    lines.show(progress(layer(35 * MIB)))
    assert said(capsys) == []
    clock.now_s += 0.01
    lines.show(progress(layer(40 * MIB)))
    assert said(capsys) == ["pulling m: 40%, 40.0 MiB of 100.0 MiB, 10.0 MiB/s, 6.00s left"]
    clock.now_s += SPACING_S
    lines.show(progress(layer(49 * MIB)))
    assert said(capsys) == []
    lines.show(progress(layer(50 * MIB)))
    assert len(said(capsys)) == 1


def test_a_slow_pull_is_not_silent_for_long(
    lines: Lines, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    lines.show(progress(layer(MIB)))
    said(capsys)
    clock.now_s += SILENCE_S - 0.01
    lines.show(progress(layer(MIB)))
    assert said(capsys) == []
    clock.now_s += 0.01
    lines.show(progress(layer(MIB)))
    assert said(capsys) == ["pulling m: 1%, 1.0 MiB of 100.0 MiB"]


def test_notes_are_told_once(lines: Lines, capsys: pytest.CaptureFixture[str]) -> None:
    lines.show(progress(phase="resolving", notes=("took Q4_K_M",)))
    lines.show(progress(phase="resolving", notes=("took Q4_K_M", "two files")))
    assert said(capsys) == ["took Q4_K_M", "resolving m", "two files"]


def test_what_is_nothing_at_all_is_no_division_by_zero(
    lines: Lines, capsys: pytest.CaptureFixture[str]
) -> None:
    lines.show(progress(layer(0, 0)))
    assert said(capsys) == ["pulling m"]


@pytest.mark.parametrize(
    ("verb", "phase", "position", "text"),
    [
        ("pull", "queued", None, "m waits"),
        ("pull", "queued", 1, "m waits for another transfer to end"),
        ("pull", "queued", 3, "m waits for 3 other transfers to end"),
        ("pull", "resolving", None, "resolving m"),
        ("push", "transferring", None, "pushing m"),
        ("repair", "transferring", None, "repairing m"),
        ("pull", "verifying", None, "verifying m"),
        ("pull", "publishing", None, "finishing m"),
        ("pull", "a newer one", None, "pulling m"),
    ],
)
def test_stages(verb: str, phase: str, position: int | None, text: str) -> None:
    assert stage(verb, "m", progress(phase=phase, position=position)) == text
    assert stage(verb, "m", None) == "resolving m"


def test_few_parts_are_all_shown() -> None:
    layers = [layer(0, number=index) for index in range(3)]
    assert shown_layers(layers, 3) == layers
    assert shown_layers(layers, 4) == layers


def test_of_many_parts_those_under_way_come_first_and_all_keep_their_order() -> None:
    size = 10
    done = [10, 10, 3, 0, 0, 7]
    layers = [layer(there, size, number=index) for index, there in enumerate(done)]

    def shown(rows: int) -> list[int]:
        return [layers.index(one) for one in shown_layers(layers, rows)]

    assert [shown(rows) for rows in (1, 2, 3, 4, 5)] == [
        [2],
        [2, 5],
        [2, 3, 5],
        [2, 3, 4, 5],
        [1, 2, 3, 4, 5],
    ]


@given(st.lists(st.integers(0, 10), max_size=20), st.integers(1, 25))
def test_as_many_parts_are_shown_as_there_is_room_for(done: list[int], rows: int) -> None:
    layers = [layer(there, 10, number=index) for index, there in enumerate(done)]
    shown = shown_layers(layers, rows)
    assert len(shown) == min(rows, len(layers))
    assert sorted(shown, key=layers.index) == shown


@pytest.mark.parametrize(
    ("title", "text"),
    [
        ("m.gguf", "00ffffffffff m.gguf"),
        (None, "00ffffffffff gguf"),
        ("a\nb\x1b", "00ffffffffff a\\x0ab\\x1b"),
    ],
)
def test_K06_a_part_is_called_by_its_digest_and_file(title: str | None, text: str) -> None:
    assert label(layer(0, title=title)) == text


def drawn(*moments: dict[str, object], width: int = 100, height: int = 24) -> str:
    """What stands on the terminal after these."""
    console = Console(file=io.StringIO(), force_terminal=True, width=width, height=height, color_system=None)
    bars = Bars("pull", "m", rows=8, console=console)
    for moment in moments:
        bars.show(moment)
    with console.capture() as capture:
        console.print(bars.drawn())
    return capture.get()


def test_one_part_needs_no_bar_for_the_whole() -> None:
    assert "all parts" not in drawn(progress(layer(5)))
    assert "all parts" in drawn(progress(layer(5), layer(5, number=1)))


def test_the_whole_stands_last_also_when_more_parts_begin() -> None:
    many = [layer(index, 1000, number=index) for index in range(12)]
    last = [line for line in drawn(progress(*many)).splitlines() if "/" in line][-1]
    assert last.startswith("all parts")


def test_many_parts_on_a_low_terminal_leave_room_for_the_rest() -> None:
    many = [layer(0, 1000, number=index) for index in range(50)]
    lines = drawn(progress(*many), height=9).splitlines()
    assert len(lines) <= 9
    assert lines[-1].strip() == "and 45 more"


def test_what_was_fetched_earlier_counts_for_no_rate() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, height=24, color_system=None)
    bars = Bars("pull", "m", rows=8, console=console)
    for done_bytes in (0, 60 * MIB, 60 * MIB):
        bars.show(progress(layer(done_bytes)))
    with console.capture() as capture:
        console.print(bars.drawn())
    assert "60.0/100.0 MiB" in capture.get()
    assert "MiB/s" not in capture.get()


def test_a_part_that_starts_again_is_not_done() -> None:
    text = drawn(progress(layer(100 * MIB)), progress(layer(3 * MIB)))
    assert "3.0/100.0 MiB" in text and "done" not in text


@pytest.mark.parametrize("width", [20, 40, 71, 72, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    text = drawn(progress(layer(5, title="x" * 255), layer(MIB, MIB, number=1)), width=width)
    lines = text.splitlines()
    assert all(len(line) <= width for line in lines)
    assert len(lines) == 4


def test_K06_names_are_not_read_as_markup() -> None:
    text = drawn(progress(layer(5, title="[red]a[/] :x:")), width=160)
    assert "[red]a[/] :x:" in text
