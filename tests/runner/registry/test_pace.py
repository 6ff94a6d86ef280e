from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.registry.pace import FLOOR_BYTES_PER_S, FRAMING_BYTES_MAX, WINDOW_S, Pace, TooMuchFraming, TooSlow

WINDOW_BYTES = int(WINDOW_S * FLOOR_BYTES_PER_S)


def content(pace: Pace, size_bytes: int, waited_s: float) -> None:
    pace.note_content(size_bytes)
    pace.note(size_bytes, waited_s)


def in_body(**changes: float) -> Pace:
    pace = Pace(**changes)
    pace.begin_body()
    return pace


@pytest.mark.parametrize(("waited_s", "is_refused"), [(59.0, False), (60.0, False), (61.0, True)])
def test_S05_a_head_must_come_within_its_time(waited_s: float, is_refused: bool) -> None:
    pace = Pace(head_s=60.0)
    if is_refused:
        with pytest.raises(TooSlow, match="within 60 s"):
            pace.note(1, waited_s)
    else:
        pace.note(1, waited_s)


def test_S05_a_head_that_drips_runs_out_of_time() -> None:
    pace = Pace(head_s=60.0)
    for _ in range(60):
        pace.note(1, 1.0)
    with pytest.raises(TooSlow):
        pace.note(1, 1.0)


@pytest.mark.parametrize(
    ("size_bytes", "is_refused"), [(WINDOW_BYTES + 1, False), (WINDOW_BYTES, False), (WINDOW_BYTES - 1, True)]
)
def test_S05_every_window_must_bring_a_kibibyte_a_second(size_bytes: int, is_refused: bool) -> None:
    pace = in_body()
    content(pace, size_bytes - 1, WINDOW_S - 1)
    if is_refused:
        with pytest.raises(TooSlow, match="less than 1024 bytes/s"):
            content(pace, 1, 1.0)
    else:
        content(pace, 1, 1.0)


def test_S05_a_fast_beginning_pays_for_no_slow_end() -> None:
    pace = in_body()
    content(pace, 1 << 30, WINDOW_S)
    content(pace, 1, WINDOW_S - 1)
    with pytest.raises(TooSlow):
        content(pace, 1, 1.0)


def test_S05_a_stall_shorter_than_the_window_is_no_fault() -> None:
    pace = in_body()
    content(pace, 0, WINDOW_S - 0.1)
    content(pace, WINDOW_BYTES * 2, 0.1)


@pytest.mark.parametrize(("waited_s", "is_refused"), [(119.0, False), (120.0, False), (121.0, True)])
def test_S05_a_small_answer_must_be_whole_within_its_time(waited_s: float, is_refused: bool) -> None:
    pace = in_body(total_s=120.0)
    for _ in range(int(waited_s) - 1):
        content(pace, FLOOR_BYTES_PER_S * 2, 1.0)
    if is_refused:
        with pytest.raises(TooSlow, match="not complete within 120 s"):
            content(pace, FLOOR_BYTES_PER_S * 2, 1.0)
    else:
        content(pace, FLOOR_BYTES_PER_S * 2, 1.0)


def test_S05_framing_is_no_progress() -> None:
    pace = in_body()
    pace.note(WINDOW_BYTES, WINDOW_S - 1)
    with pytest.raises(TooSlow):
        pace.note(WINDOW_BYTES, 1.0)


@pytest.mark.parametrize(("excess", "is_refused"), [(-1, False), (0, False), (1, True)])
def test_S05_framing_without_end_is_noticed_however_fast_it_comes(excess: int, is_refused: bool) -> None:
    for pace in (Pace(), in_body()):
        pace.note(FRAMING_BYTES_MAX, 0.0)
        pace.note_content(1000)
        pace.note(2000, 0.0)
        if is_refused:
            with pytest.raises(TooMuchFraming):
                pace.note(excess, 0.0)
        else:
            pace.note(excess, 0.0)


@given(st.lists(st.integers(1, 1 << 20), max_size=50))
def test_content_in_small_chunks_is_never_taken_for_framing(sizes: list[int]) -> None:
    pace = in_body()
    for size_bytes in sizes:
        pace.note(size_bytes * 2, 0.0)
        pace.note_content(size_bytes)
