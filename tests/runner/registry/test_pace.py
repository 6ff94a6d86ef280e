from __future__ import annotations

import pytest

from runner.registry.pace import FLOOR_BYTES_PER_S, WINDOW_S, Pace, TooSlow

WINDOW_BYTES = int(WINDOW_S * FLOOR_BYTES_PER_S)


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
    pace.note(size_bytes - 1, WINDOW_S - 1)
    if is_refused:
        with pytest.raises(TooSlow, match="less than 1024 bytes/s"):
            pace.note(1, 1.0)
    else:
        pace.note(1, 1.0)


def test_S05_a_fast_beginning_pays_for_no_slow_end() -> None:
    pace = in_body()
    pace.note(1 << 30, WINDOW_S)
    pace.note(1, WINDOW_S - 1)
    with pytest.raises(TooSlow):
        pace.note(1, 1.0)


def test_S05_a_stall_shorter_than_the_window_is_no_fault() -> None:
    pace = in_body()
    pace.note(0, WINDOW_S - 0.1)
    pace.note(WINDOW_BYTES * 2, 0.1)


@pytest.mark.parametrize(("waited_s", "is_refused"), [(119.0, False), (120.0, False), (121.0, True)])
def test_S05_a_small_answer_must_be_whole_within_its_time(waited_s: float, is_refused: bool) -> None:
    pace = in_body(total_s=120.0)
    for _ in range(int(waited_s) - 1):
        pace.note(FLOOR_BYTES_PER_S * 2, 1.0)
    if is_refused:
        with pytest.raises(TooSlow, match="not complete within 120 s"):
            pace.note(FLOOR_BYTES_PER_S * 2, 1.0)
    else:
        pace.note(FLOOR_BYTES_PER_S * 2, 1.0)
