"""How many requests a model runs at once is what it was loaded with."""

from __future__ import annotations

import pytest

from runner.scheduling import effects, events
from tests.support.scheduling import World


@pytest.mark.parametrize(("max_sequences", "granted"), [(1, 1), (3, 3), (None, 2)])
def test_as_many_leases_are_given_as_the_worker_runs_sequences(
    max_sequences: int | None, granted: int
) -> None:
    world = World(leases_per_model=2)
    for _ in range(4):
        world.want("a")
    world.size("a", 60)
    done = world.core.handle(events.WorkerReady(world.load_id("a"), max_sequences), world.now_s)
    assert len([effect for effect in done if isinstance(effect, effects.GrantLease)]) == granted
    [view] = world.core.views()
    assert (view.leases, view.waiting) == (granted, 4 - granted)
