"""Instances and the table that finds them."""

from __future__ import annotations

from runner.oci.digest import Digest
from runner.scheduling.instances import InstanceTable
from runner.scheduling.ledger import Ledger
from runner.scheduling.lifecycle import InstanceState
from runner.scheduling.rules import SchedulingRules
from tests.support.scheduling import on_host

MODEL = Digest.of(b"model")


def test_an_instance_is_made_once_and_starts_unloaded_with_the_default_keep_alive() -> None:
    table = InstanceTable(Ledger(on_host(100)))
    rules = SchedulingRules(default_keep_alive_s=7.0, leases_per_model=2)
    instance = table.obtain(MODEL, "ai/model", rules)
    assert table.obtain(MODEL, "another name", rules) is instance
    assert (instance.state, instance.keep_alive_s) == (InstanceState.UNLOADED, 7.0)
    assert repr(instance) == "<Instance ai/model unloaded, 0 leased, 0 waiting>"


def test_leases_are_free_up_to_the_limit() -> None:
    instance = InstanceTable(Ledger(on_host(100))).obtain(MODEL, "m", SchedulingRules(leases_per_model=2))
    instance.leases[1] = 0.0
    assert instance.has_free_lease
    instance.leases[2] = 0.0
    assert not instance.has_free_lease


def test_an_empty_table_has_no_deadline() -> None:
    assert InstanceTable(Ledger(on_host(100))).next_deadline_s(SchedulingRules()) == float("inf")
