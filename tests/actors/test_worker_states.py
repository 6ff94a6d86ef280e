"""A keeper and what its worker saves at its end, with real processes that do as their command line says."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.deaths import DeathKind
from actors.saved_states import SavedStates
from actors.worker import WorkerSpec
from runner.oci.digest import Digest
from tests.support.kept_worker import DEAF, kept_worker, text_request, worker_spec

pytestmark = pytest.mark.anyio


@pytest.fixture
async def states(tmp_path: Path) -> SavedStates:
    states = SavedStates(tmp_path / "cache", limit_bytes=1 << 40)
    await states.open()
    return states


def spec() -> WorkerSpec:
    return worker_spec(weights_digests=(Digest.parse("sha256:" + "cd" * 32),))


async def test_a_worker_that_is_stopped_leaves_its_states(states: SavedStates) -> None:
    async with kept_worker("saves:1000", spec=spec(), states=states) as kept:
        assert await kept.generate("say one two")
    death = await kept.death()
    assert (death.was_requested, death.exit_code) == (True, 0)
    assert states.usage.states == 1


@pytest.mark.parametrize("behaviour", ["saves-half:1000", "normal"])
async def test_a_worker_that_sends_no_whole_state_leaves_none(
    states: SavedStates, behaviour: str, tmp_path: Path
) -> None:
    async with kept_worker(behaviour, spec=spec(), states=states) as kept:
        await kept.handle()
    assert (await kept.death()).was_requested
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["key"]


async def test_W07_what_means_nothing_after_a_state_takes_nothing_from_it(states: SavedStates) -> None:
    async with kept_worker("saves-garbage:1000", spec=spec(), states=states) as kept:
        await kept.handle()
    assert (await kept.death()).was_requested
    assert states.usage.states == 1


async def test_a_worker_that_crashes_leaves_nothing(states: SavedStates) -> None:
    async with kept_worker("saves:1000", spec=spec(), states=states) as kept:
        stream = (await kept.handle()).open_stream(text_request("die SIGKILL"))
        await kept.death()
        stream.close()
    assert states.usage.states == 0


async def test_L08_a_worker_that_does_not_end_is_ended_while_states_are_on(states: SavedStates) -> None:
    async with kept_worker("ignore-shutdown", spec=spec(), states=states, stop=DEAF) as kept:
        await kept.handle()
    death = await kept.death()
    assert (death.was_requested, death.signal) == (True, "SIGTERM")


async def test_G12_a_worker_that_asks_for_what_it_was_not_offered_gets_nothing(states: SavedStates) -> None:
    async with kept_worker("wants:1", spec=spec(), states=states) as kept:
        assert await kept.generate("say one two")
    assert (await kept.death()).was_requested


async def test_W07_a_worker_that_sends_what_it_was_not_asked_for_is_ended(states: SavedStates) -> None:
    async with kept_worker("pushes", spec=spec(), states=states) as kept:
        death = await kept.death()
    assert death.kind is DeathKind.PROTOCOL_FAULT
    assert states.usage.states == 0


async def test_a_worker_that_dies_while_it_saves_leaves_nothing(states: SavedStates, tmp_path: Path) -> None:
    async with kept_worker("announces:1000", spec=spec(), states=states) as kept:
        stream = (await kept.handle()).open_stream(text_request("die SIGKILL"))
        await kept.death()
        stream.close()
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["key"]
