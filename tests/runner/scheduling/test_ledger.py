"""Bytes given away: never more than there are."""

from __future__ import annotations

import pytest

from runner.scheduling.ledger import Ledger, OverBudget


@pytest.mark.parametrize("size", [99, 100])
def test_a_reservation_up_to_the_budget_is_granted(size: int) -> None:
    ledger = Ledger(100)
    ledger.reserve(1, size)
    assert (ledger.reserved_bytes, ledger.free_bytes, ledger.of(1)) == (size, 100 - size, size)


def test_a_reservation_above_the_budget_is_refused_and_changes_nothing() -> None:
    ledger = Ledger(100)
    ledger.reserve(1, 40)
    with pytest.raises(OverBudget, match="61 bytes cannot be reserved, 60 are free"):
        ledger.reserve(2, 61)
    assert (ledger.reserved_bytes, ledger.of(2)) == (40, 0)


def test_what_is_given_back_can_be_reserved_again_and_only_once() -> None:
    ledger = Ledger(100)
    ledger.reserve(1, 100)
    ledger.give_back(1)
    ledger.reserve(2, 100)
    with pytest.raises(KeyError):
        ledger.give_back(1)
    assert repr(ledger) == "<Ledger 100 of 100 bytes by 1 loads>"


def test_a_budget_may_shrink_below_what_is_reserved() -> None:
    ledger = Ledger(100)
    ledger.reserve(1, 80)
    ledger.budget_bytes = 50
    assert ledger.free_bytes == -30
    with pytest.raises(OverBudget):
        ledger.reserve(2, 0)
