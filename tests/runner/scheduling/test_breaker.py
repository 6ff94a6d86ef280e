"""The breaker (L04): opens, probes, closes, and never lets two probes run at once."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from runner.oci.digest import Digest
from runner.scheduling.breaker import Breaker, BreakerRules, Breakers, BreakerState

RULES = BreakerRules()


def opened(at_s: float = 0.0) -> Breaker:
    breaker = Breaker(RULES)
    assert [breaker.crashed(at_s) for _ in range(3)] == [False, False, True]
    return breaker


def model(number: int) -> Digest:
    return Digest.of(str(number).encode())


@pytest.mark.parametrize(("third_s", "opens"), [(59.0, True), (60.0, True), (60.001, False)])
def test_L04_three_crashes_within_the_window_open_it(third_s: float, opens: bool) -> None:
    breaker = Breaker(RULES)
    assert not breaker.crashed(0)
    assert not breaker.crashed(30)
    assert breaker.admit(1, 30) == 0
    assert breaker.crashed(third_s) is opens
    assert (breaker.admit(2, third_s) > 0) is opens


def test_L04_while_it_is_open_requests_are_told_when_to_come_again() -> None:
    breaker = opened(100)
    assert breaker.admit(1, 100) == 30
    assert breaker.admit(2, 129.5) == 0.5
    assert breaker.state is BreakerState.OPEN


def test_L04_then_one_probe_goes_and_others_are_refused_until_it_is_over() -> None:
    breaker = opened(100)
    assert breaker.admit(1, 130) == 0
    assert breaker.admit(2, 131) == RULES.probe_retry_s
    breaker.succeeded(2)  # not the probe
    assert breaker.admit(3, 132) > 0
    breaker.succeeded(1)
    assert breaker.state is BreakerState.CLOSED
    assert breaker.admit(4, 133) == 0


def test_L04_a_failed_probe_doubles_the_time_up_to_the_longest() -> None:
    breaker, now_s, durations = opened(0), 0.0, []
    for ticket in range(6):
        durations.append(breaker.open_s)
        now_s += breaker.open_s
        assert breaker.admit(ticket, now_s) == 0
        assert breaker.crashed(now_s)
    assert durations == [30, 60, 120, 240, 300, 300]


def test_L04_success_forgets_everything() -> None:
    breaker = opened(0)
    breaker.admit(1, 30)
    breaker.crashed(31)
    breaker.admit(2, 91)
    breaker.succeeded(2)
    assert [breaker.crashed(92) for _ in range(3)] == [False, False, True]
    assert breaker.open_s == 30


def test_a_probe_that_uses_its_worker_for_a_while_has_succeeded() -> None:
    breaker = opened(0)
    breaker.admit(1, 30)
    assert breaker.admit(2, 130) > 0  # it still waits for its worker
    breaker.granted(1, 130)
    assert breaker.admit(2, 139.9) > 0
    assert breaker.admit(2, 140) == 0
    assert breaker.state is BreakerState.CLOSED


def test_a_probe_that_showed_nothing_leaves_its_place_to_the_next_request() -> None:
    breaker = opened(0)
    breaker.admit(1, 30)
    breaker.abandoned(1)
    assert breaker.admit(2, 30) == 0
    breaker.abandoned(1)  # again: of another probe this says nothing
    assert breaker.admit(3, 30) > 0


def test_a_crash_after_the_probe_was_answered_counts_as_its_failure() -> None:
    breaker = opened(0)
    breaker.admit(1, 30)
    breaker.abandoned(1)  # the load failed, and those who waited were told so
    assert breaker.crashed(30.1)  # now its process is gone, and by a crash
    assert breaker.open_s == 60


def test_a_late_end_of_an_old_worker_does_not_lengthen_the_time() -> None:
    breaker = opened(0)
    assert not breaker.crashed(1)
    assert breaker.admit(1, 30) == 0


def test_models_do_not_share_a_breaker_and_only_so_many_are_remembered() -> None:
    breakers = Breakers(RULES, limit=2)
    for _ in range(3):
        found = breakers.crashed(model(1), 0)
    assert found is not None
    assert breakers.admit(model(1), 1, 0) == 30
    assert breakers.admit(model(2), 2, 0) == 0
    assert breakers.state(model(2)) is BreakerState.CLOSED
    breakers.crashed(model(2), 1)
    breakers.crashed(model(1), 1)
    breakers.crashed(model(3), 2)
    assert repr(breakers) == "<Breakers of 2 models, 0 probes>"
    assert breakers.state(model(1)) is BreakerState.OPEN  # the one of model 2 was the oldest


def test_no_ticket_is_kept_of_a_probe_that_crashed() -> None:
    breakers = Breakers(RULES)
    for ticket in range(20):
        breakers.crashed(model(1), ticket * 1000)
        breakers.crashed(model(1), ticket * 1000)
        breakers.crashed(model(1), ticket * 1000)
        assert breakers.admit(model(1), ticket, ticket * 1000 + 400) == 0
    assert repr(breakers) == "<Breakers of 1 models, 1 probes>"


def test_tickets_of_probes_are_forgotten_with_their_end() -> None:
    breakers = Breakers(RULES)
    for _ in range(3):
        breakers.crashed(model(1), 0)
    assert breakers.admit(model(1), 7, 30) == 0
    breakers.granted(7, 31)
    breakers.granted(8, 31)  # of nobody
    breakers.succeeded(7)
    breakers.succeeded(7)
    breakers.abandoned(7)
    assert breakers.state(model(1)) is BreakerState.CLOSED
    assert breakers.admit(model(1), 9, 32) == 0


class Histories(RuleBasedStateMachine):
    """Any order of requests, ends and crashes of one model, held against what was seen from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.breakers = Breakers(RULES)
        self.model = model(1)
        self.now_s = 0.0
        self.next_ticket = 0
        self.refused_until_s = 0.0
        self.open: dict[int, bool] = {}
        """Admitted tickets that have not ended: whether each was admitted as a probe."""

    @rule(seconds=st.sampled_from([0.0, 0.5, 5.0, 11.0, 30.0, 61.0, 400.0]))
    def pass_time(self, seconds: float) -> None:
        self.now_s += seconds

    @rule()
    def ask(self) -> None:
        self.next_ticket += 1
        probes = [ticket for ticket, is_probe in self.open.items() if is_probe]
        retry_after_s = self.breakers.admit(self.model, self.next_ticket, self.now_s)
        assert 0 <= retry_after_s <= RULES.longest_open_s
        if retry_after_s:
            assert self.breakers.state(self.model) is not BreakerState.CLOSED
            return
        assert self.now_s >= self.refused_until_s
        is_probe = self.breakers.state(self.model) is BreakerState.PROBING
        assert not (is_probe and probes), "two probes"
        if not is_probe:  # closed, so those admitted as probes are requests like all others
            self.open = dict.fromkeys(self.open, False)
        self.open[self.next_ticket] = is_probe

    @rule(how=st.sampled_from(["granted", "succeeded", "abandoned"]), which=st.integers(0, 5))
    def progress(self, how: str, which: int) -> None:
        if not self.open:
            return
        ticket = list(self.open)[which % len(self.open)]
        match how:
            case "granted":
                self.breakers.granted(ticket, self.now_s)
            case "succeeded":
                self.breakers.succeeded(ticket)
                del self.open[ticket]
            case "abandoned":
                self.breakers.abandoned(ticket)
                del self.open[ticket]

    @rule()
    def crash(self) -> None:
        opened = self.breakers.crashed(self.model, self.now_s)
        self.open.clear()
        if opened is not None:
            assert RULES.first_open_s <= opened.open_s <= RULES.longest_open_s
            self.refused_until_s = self.now_s + opened.open_s

    def teardown(self) -> None:
        """Whatever happened: with time, and a probe that ends well, the model is served again."""
        self.now_s += RULES.longest_open_s
        for ticket in self.open:
            self.breakers.abandoned(ticket)
        assert self.breakers.admit(self.model, -1, self.now_s) == 0
        self.breakers.succeeded(-1)
        assert self.breakers.admit(self.model, -2, self.now_s) == 0
        assert self.breakers.state(self.model) is BreakerState.CLOSED


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
