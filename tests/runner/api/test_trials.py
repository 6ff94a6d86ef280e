"""Who is blamed for the death of a worker (L05): turns of suspects, and the innocent beside them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio
import trio.testing

from runner.api.suspects import Suspects
from runner.api.trials import TURN_S, Trial, Trials
from runner.domain.generation import GenerationRequest, TextPrompt
from runner.domain.model import Model
from runner.errors import RequestQuarantined
from tests.support.fake_handles import fake_model

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("virtual_clock")]

MODEL = fake_model()
OTHER_MODEL = fake_model("ai/other", digest_of=b"other")


class Worker:
    """Something that can be told from others of its kind."""


def request(text: str) -> GenerationRequest:
    return GenerationRequest(request_id="r", prompt=TextPrompt(text))


@pytest.fixture
def trials() -> Trials:
    return Trials(Suspects(b"key"))


async def run(trials: Trials, text: str, worker: Worker, model: Model = MODEL) -> Trial:
    trial = await trials.enter(model, request(text))
    trial.began(worker)
    return trial


async def run_and_die(trials: Trials, *texts: str) -> None:
    """These run together on one worker, which dies."""
    worker = Worker()
    running = [await run(trials, text, worker) for text in texts]
    for trial in running:
        trial.ended_in_a_death()
        trial.close()


def end_well(trial: Trial) -> None:
    trial.ended_well()
    trial.close()


async def is_refused(trials: Trials, text: str) -> bool:
    try:
        (await trials.enter(MODEL, request(text))).close()
    except RequestQuarantined:
        return True
    return False


async def test_while_nobody_is_suspected_nothing_is_computed(trials: Trials) -> None:
    trial = await run(trials, "a", Worker())
    assert trial.fingerprint is None
    end_well(trial)
    assert trial.fingerprint is None


async def test_L05_a_request_that_ended_two_workers_is_refused_and_others_are_not(trials: Trials) -> None:
    for _ in range(2):
        assert not await is_refused(trials, "bad")
        await run_and_die(trials, "bad")
    with pytest.raises(RequestQuarantined, match="ai/smollm2"):
        await trials.enter(MODEL, request("bad"))
    assert not await is_refused(trials, "good")
    (await trials.enter(OTHER_MODEL, request("bad"))).close()


async def test_L05_the_innocent_beside_it_run_one_by_one_and_are_cleared(trials: Trials) -> None:
    await run_and_die(trials, "a", "bad", "c")
    running: list[str] = []
    dead: list[str] = []

    async def retry(text: str) -> None:
        trial = await run(trials, text, Worker())
        running.append(text)
        assert len(running) == 1
        await trio.sleep(1)
        running.remove(text)
        if text == "bad":
            dead.append(text)
            trial.ended_in_a_death()
        else:
            trial.ended_well()
        trial.close()

    async with trio.open_nursery() as nursery:
        for text in ("a", "bad", "c"):
            nursery.start_soon(retry, text)
    assert dead == ["bad"]
    assert [await is_refused(trials, text) for text in ("a", "bad", "c")] == [False, True, False]
    assert repr(trials) == "<Trials <Suspects 1, of them 1 in quarantine>, 0 models with turns>"


async def test_L05_a_death_is_the_suspects_and_not_of_those_who_came_meanwhile(trials: Trials) -> None:
    await run_and_die(trials, "bad")
    worker = Worker()
    suspect, newcomer = await run(trials, "bad", worker), await run(trials, "new", worker)
    for trial in (newcomer, suspect):
        trial.ended_in_a_death()
        trial.close()
    assert await is_refused(trials, "bad")
    await run_and_die(trials, "new")  # its first
    assert not await is_refused(trials, "new")


async def test_a_worker_that_a_suspect_left_alive_may_be_ended_by_others(trials: Trials) -> None:
    await run_and_die(trials, "a")
    worker = Worker()
    suspect = await run(trials, "a", worker)
    other = await run(trials, "bad", worker)
    suspect.close()  # its client left
    other.ended_in_a_death()
    other.close()
    await run_and_die(trials, "bad")
    assert await is_refused(trials, "bad")


async def test_a_suspect_that_runs_for_long_lets_the_next_one_in(trials: Trials) -> None:
    await run_and_die(trials, "a", "b", "c")
    worker = Worker()
    first = await run(trials, "a", worker)
    before_s = trio.current_time()
    second = await run(trials, "b", worker)
    assert trio.current_time() - before_s == pytest.approx(TURN_S)
    end_well(first)
    before_s = trio.current_time()
    third = await run(trials, "c", worker)
    assert trio.current_time() - before_s == pytest.approx(TURN_S)
    end_well(second)
    end_well(third)
    assert not await is_refused(trials, "a")


async def test_a_suspect_that_waits_for_its_worker_keeps_its_turn(trials: Trials) -> None:
    await run_and_die(trials, "a", "b")
    first = await trials.enter(MODEL, request("a"))
    with trio.move_on_after(1000) as scope:
        await trials.enter(MODEL, request("b"))
    assert scope.cancelled_caught
    first.close()
    end_well(await run(trials, "b", Worker()))


async def test_one_that_was_quarantined_while_it_waited_for_its_turn_is_refused(trials: Trials) -> None:
    await run_and_die(trials, "bad")
    first = await run(trials, "bad", Worker())
    refusals: list[RequestQuarantined] = []

    async def second() -> None:
        try:
            await trials.enter(MODEL, request("bad"))
        except RequestQuarantined as error:
            refusals.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(second)
        await trio.testing.wait_all_tasks_blocked()
        first.ended_in_a_death()
        first.close()
    assert len(refusals) == 1
    assert "0 models with turns" in repr(trials)


async def test_models_do_not_wait_for_each_others_suspects(trials: Trials) -> None:
    await run_and_die(trials, "a")
    worker = Worker()
    other = await run(trials, "b", worker, OTHER_MODEL)
    other.ended_in_a_death()
    other.close()
    first = await trials.enter(MODEL, request("a"))
    with trio.fail_after(1):
        second = await trials.enter(OTHER_MODEL, request("b"))
    first.close()
    second.close()
    second.close()


@pytest.mark.parametrize("how", [Trial.ended_well, Trial.ended_in_a_death, None])
async def test_nothing_is_kept_of_turns_and_workers_that_are_over(
    trials: Trials, how: Callable[[Trial], None] | None
) -> None:
    await run_and_die(trials, "a")
    worker = Worker()
    trial = await run(trials, "a", worker)
    if how is not None:
        how(trial)
    trial.close()
    assert "0 models with turns" in repr(trials)
    del trial, worker
    assert not trials._explained
