"""Budgets: a share of what is free or ours, or what somebody configured."""

from __future__ import annotations

import pytest

from actors import budget
from actors.budget import fixed, share_of_free_memory

pytestmark = pytest.mark.anyio


async def test_a_configured_budget_is_taken_as_it_is() -> None:
    assert await fixed(12345)() == 12345


async def test_O01_the_budget_is_80_percent_of_what_is_free_or_held_by_our_workers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(budget, "free_memory_bytes", lambda: 700)
    monkeypatch.setattr(budget, "children_private_bytes", lambda: 300)
    assert await share_of_free_memory() == 800


async def test_this_machine_has_a_budget() -> None:
    assert await share_of_free_memory() > 0
