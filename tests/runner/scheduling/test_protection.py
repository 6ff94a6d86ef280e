"""Delays, breaker and quarantine, as the core asks for them (L03, L04, L06)."""

from __future__ import annotations

from runner.oci.digest import Digest
from runner.scheduling.protection import Crash, InQuarantine, LeftAlone, Protection
from runner.scheduling.quarantine import LoadQuarantine

MODEL, OTHER = Digest.of(b"a"), Digest.of(b"b")


def crash(protection: Protection, now_s: float = 0.0, *, while_loading: bool = False) -> Crash:
    return protection.crashed(
        MODEL, "ai/a", "signal SIGSEGV", while_loading=while_loading, now_s=now_s, jitter=0.0
    )


def test_L03_each_crash_delays_the_next_start_longer() -> None:
    protection = Protection()
    assert protection.not_before_s(MODEL) < 0
    delays = [crash(protection, 100).record.not_before_s - 100 for _ in range(2)]
    assert delays == [0.25, 0.5]
    assert protection.not_before_s(MODEL) == 100.5
    assert protection.not_before_s(OTHER) < 0


def test_L04_the_third_crash_refuses_who_waits_and_who_comes() -> None:
    protection = Protection()
    assert crash(protection).refusal is None
    assert crash(protection).refusal is None
    assert protection.refusal(MODEL, "ai/a", 1, 0.0) is None
    assert crash(protection).refusal == LeftAlone(model="ai/a", retry_after_s=30.0)
    assert protection.refusal(MODEL, "ai/a", 2, 10.0) == LeftAlone(model="ai/a", retry_after_s=20.0)
    assert protection.refusal(OTHER, "ai/b", 3, 10.0) is None


def test_L04_what_becomes_of_the_probe_decides() -> None:
    protection = Protection()
    for _ in range(3):
        crash(protection)
    assert protection.refusal(MODEL, "ai/a", 1, 30.0) is None
    protection.abandoned(1)
    assert protection.refusal(MODEL, "ai/a", 2, 30.0) is None
    protection.granted(2, 31.0)
    assert protection.refusal(MODEL, "ai/a", 3, 32.0) is not None
    protection.succeeded(2)
    assert protection.refusal(MODEL, "ai/a", 4, 32.0) is None


def test_L06_two_crashes_while_loading_end_the_loading_of_a_model() -> None:
    protection = Protection()
    assert crash(protection, 0, while_loading=True).refusal is None
    in_quarantine = InQuarantine(model="ai/a", crashes=2, cause="signal SIGSEGV")
    assert crash(protection, 500, while_loading=True).refusal == in_quarantine
    assert protection.refusal(MODEL, "ai/a", 1, 10_000.0) == in_quarantine
    assert [one.model_id for one in protection.quarantined()] == [str(MODEL)]
    assert protection.refusal(OTHER, "ai/b", 2, 10_000.0) is None


def test_L06_crashes_of_a_loaded_model_and_loads_between_crashes_do_not_count() -> None:
    protection = Protection()
    crash(protection, 0, while_loading=True)
    protection.loaded(MODEL)
    crash(protection, 500, while_loading=True)
    crash(protection, 1000)
    assert protection.refusal(MODEL, "ai/a", 1, 2000.0) is None
    assert protection.quarantined() == ()


def test_L06_a_model_is_freed_by_command() -> None:
    protection = Protection()
    crash(protection, 0, while_loading=True)
    crash(protection, 500, while_loading=True)
    lifted = protection.lift(MODEL)
    assert lifted is not None and lifted.crashes == 2
    assert protection.lift(MODEL) is None
    assert protection.refusal(MODEL, "ai/a", 1, 1000.0) is None


def test_every_change_is_to_be_written_down_once() -> None:
    protection = Protection()
    assert protection.take_changed() is None
    protection.loaded(MODEL)
    crash(protection)
    assert protection.take_changed() is None
    crash(protection, while_loading=True)
    records = protection.take_changed()
    assert records is not None and len(records) == 1
    assert protection.take_changed() is None
    protection.loaded(MODEL)
    assert protection.take_changed() == ()
    again = Protection(quarantine=LoadQuarantine.remembering("", records))
    assert crash(again, while_loading=True).refusal is not None


def test_records_of_another_engine_are_kept_and_not_shown() -> None:
    old = LoadQuarantine("old")
    old.crashed(MODEL, "ai/a", "signal SIGSEGV")
    old.crashed(MODEL, "ai/a", "signal SIGSEGV")
    protection = Protection(quarantine=LoadQuarantine.remembering("new", old.records()))
    assert protection.quarantined() == ()
    crash(protection, while_loading=True)
    records = protection.take_changed()
    assert records is not None and {one.engine for one in records} == {"old", "new"}
