"""Models that crash the engine while they load (L06)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from runner.oci.digest import Digest
from runner.scheduling.quarantine import MODELS_MAX, LoadQuarantine

ENGINE = "llama 1"


def model(number: int = 1) -> Digest:
    return Digest.of(str(number).encode())


def crashed_twice(engine: str = ENGINE) -> LoadQuarantine:
    quarantine = LoadQuarantine(engine)
    quarantine.crashed(model(), "ai/bad", "signal SIGSEGV")
    quarantine.crashed(model(), "ai/bad", "signal SIGABRT")
    return quarantine


def test_L06_the_second_crash_while_loading_puts_a_model_in_quarantine() -> None:
    quarantine = LoadQuarantine(ENGINE)
    quarantine.crashed(model(), "ai/bad", "signal SIGSEGV")
    assert quarantine.quarantined(model()) is None
    record = quarantine.crashed(model(), "ai/bad", "signal SIGABRT")
    assert quarantine.quarantined(model()) == record
    assert (record.crashes, record.cause, record.model) == (2, "signal SIGABRT", "ai/bad")
    assert quarantine.quarantined(model(2)) is None


def test_L06_a_load_that_succeeds_between_two_crashes_starts_the_count_anew() -> None:
    quarantine = LoadQuarantine(ENGINE)
    quarantine.crashed(model(), "ai/bad", "signal SIGSEGV")
    assert quarantine.lift(model()) is not None
    assert quarantine.lift(model()) is None
    quarantine.crashed(model(), "ai/bad", "signal SIGSEGV")
    assert quarantine.quarantined(model()) is None


def test_L06_a_command_frees_it() -> None:
    quarantine = crashed_twice()
    quarantine.lift(model())
    assert quarantine.quarantined(model()) is None
    assert quarantine.records() == ()


def test_L06_it_outlives_restarts_and_a_new_engine_is_free_of_it() -> None:
    records = crashed_twice().records()
    assert LoadQuarantine.remembering(ENGINE, records).quarantined(model()) is not None
    newer = LoadQuarantine.remembering("llama 2", records)
    assert newer.quarantined(model()) is None
    newer.lift(model())
    assert LoadQuarantine.remembering(ENGINE, newer.records()).quarantined(model()) is not None


def test_one_crash_before_a_restart_and_one_after_are_two() -> None:
    before = LoadQuarantine(ENGINE)
    before.crashed(model(), "ai/bad", "signal SIGSEGV")
    after = LoadQuarantine.remembering(ENGINE, before.records())
    after.crashed(model(), "ai/bad", "signal SIGSEGV")
    assert after.quarantined(model()) is not None


def test_O08_so_many_models_are_remembered_and_the_oldest_are_forgotten_first() -> None:
    quarantine = LoadQuarantine(ENGINE)
    for number in range(MODELS_MAX + 1):
        quarantine.crashed(model(number), "ai/bad", "x" * 10_000)
    assert len(quarantine.records()) == MODELS_MAX
    assert quarantine.records()[0].model_id == str(model(1))
    assert len(quarantine.records()[0].cause) == 200


@given(st.lists(st.tuples(st.sampled_from(["crash", "lift", "restart"]), st.integers(0, 2)), max_size=40))
def test_a_model_is_quarantined_exactly_after_two_crashes_without_a_lift(
    history: list[tuple[str, int]],
) -> None:
    quarantine, crashes = LoadQuarantine(ENGINE), dict.fromkeys(range(3), 0)
    for what, number in history:
        match what:
            case "crash":
                quarantine.crashed(model(number), "ai/bad", "signal SIGSEGV")
                crashes[number] += 1
            case "lift":
                quarantine.lift(model(number))
                crashes[number] = 0
            case "restart":
                quarantine = LoadQuarantine.remembering(ENGINE, quarantine.records())
        for one, count in crashes.items():
            assert (quarantine.quarantined(model(one)) is not None) is (count >= 2)
