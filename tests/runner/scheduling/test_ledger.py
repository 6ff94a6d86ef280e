"""Bytes given away: never more than there are, on any device."""

from __future__ import annotations

import pytest

from runner.domain.device_bytes import DeviceBytes
from runner.scheduling.ledger import Ledger, OverBudget
from tests.support.scheduling import on_host


@pytest.mark.parametrize("size", [99, 100])
def test_a_reservation_up_to_the_budget_is_granted(size: int) -> None:
    ledger = Ledger(on_host(100))
    ledger.reserve(1, on_host(size))
    assert ledger.reserved == ledger.of(1) == on_host(size)
    assert ledger.free == on_host(100 - size)


def test_a_reservation_above_the_budget_is_refused_and_changes_nothing() -> None:
    ledger = Ledger(on_host(100))
    ledger.reserve(1, on_host(40))
    with pytest.raises(OverBudget, match="61 B cannot be reserved, 60 B is free"):
        ledger.reserve(2, on_host(61))
    assert (ledger.reserved, ledger.of(2)) == (on_host(40), DeviceBytes())


def test_O01_every_device_has_to_have_the_room() -> None:
    ledger = Ledger(DeviceBytes({"cpu": 100, "CUDA0": 50}))
    ledger.reserve(1, DeviceBytes({"cpu": 10, "CUDA0": 50}))
    for needed in (DeviceBytes({"CUDA0": 1}), DeviceBytes({"CUDA1": 1}), on_host(91)):
        with pytest.raises(OverBudget):
            ledger.reserve(2, needed)
    ledger.reserve(2, on_host(90))
    assert not ledger.free


def test_what_is_given_back_can_be_reserved_again_and_only_once() -> None:
    ledger = Ledger(on_host(100))
    ledger.reserve(1, on_host(100))
    ledger.give_back(1)
    ledger.reserve(2, on_host(100))
    with pytest.raises(KeyError):
        ledger.give_back(1)
    assert repr(ledger) == "<Ledger 100 B of 100 B by 1 loads>"


def test_a_budget_may_shrink_below_what_is_reserved() -> None:
    ledger = Ledger(DeviceBytes({"cpu": 100, "CUDA0": 100}))
    ledger.reserve(1, on_host(80))
    ledger.budget = DeviceBytes({"cpu": 50, "CUDA0": 100})
    assert ledger.free == DeviceBytes({"cpu": -30, "CUDA0": 100})
    with pytest.raises(OverBudget):
        ledger.reserve(2, on_host(1))
    ledger.reserve(3, DeviceBytes({"CUDA0": 100}))
