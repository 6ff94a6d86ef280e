"""The worker's loop over a socketpair, with the scripted engine, in this process."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest

from runner.domain.events import (
    Accepted,
    Failed,
    Finished,
    FinishReason,
    GenerationEvent,
    TextDelta,
)
from runner.domain.generation import (
    ChatMessage,
    ChatPrompt,
    TextPrompt,
    TokenPrompt,
)
from runner.engine.fake import N_VOCAB, ScriptedBackend
from runner.hardware.pinning import DevicePin
from runner.wire.messages import (
    PROTOCOL_VERSION,
    Cancel,
    Hello,
    Loaded,
    LoadFailed,
    LoadModel,
    LoadProgress,
    SetThreads,
    Shutdown,
)
from runner.worker.loop import EXIT_DEAF_DAEMON, EXIT_DONE, EXIT_PROTOCOL, FRAME_INTERVAL_S
from runner.worker.preparation import QUEUE_MAX
from tests.support.worker_peer import (
    ENDLESS,
    OPTIONS,
    PATIENCE_S,
    ROOMY,
    WorkerThread,
    chat,
    generate,
    has_ended,
    text_of,
    worker_thread,
)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.write_bytes(b"no directives")
    return path


@pytest.fixture
def worker() -> Iterator[WorkerThread]:
    with worker_thread() as started:
        yield started


@pytest.fixture
def loaded(worker: WorkerThread, weights: Path) -> WorkerThread:
    worker.load(weights)
    return worker


def test_a_worker_says_hello_and_reports_the_load_and_what_it_has_loaded(
    worker: WorkerThread, weights: Path
) -> None:
    hello = worker.receive()
    assert isinstance(hello, Hello)
    assert hello.protocol_version == PROTOCOL_VERSION
    worker.send(LoadModel(engine="scripted", weights_paths=(str(weights),), options=OPTIONS))
    fractions = []
    while isinstance(message := worker.receive(), LoadProgress):
        fractions.append(message.fraction)
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert message is not None
    assert (message.n_vocab, message.context_size, message.n_cells) == (N_VOCAB, 256, 512)
    assert message.max_sequences == 4
    assert message.load_s >= 0


def test_a_load_that_fails_is_told_and_ends_the_worker(worker: WorkerThread, tmp_path: Path) -> None:
    answer = worker.try_to_load(tmp_path / "nowhere")
    assert isinstance(answer, LoadFailed)
    assert answer.code == "loading_failed"
    assert str(tmp_path) not in answer.message
    assert worker.receive() is None
    assert worker.join() == EXIT_DONE


def test_an_unknown_engine_is_a_failed_load(worker: WorkerThread, weights: Path) -> None:
    answer = worker.try_to_load(weights, engine="steam")
    assert isinstance(answer, LoadFailed)


def test_an_error_of_the_engine_in_a_load_is_told_and_ends_the_worker_with_its_traceback(
    worker: WorkerThread, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError("of the inside")

    monkeypatch.setattr("runner.worker.loop.load_backend", fail)
    answer = worker.try_to_load(weights)
    assert answer == LoadFailed(code="loading_failed", message="the engine failed: MemoryError")
    worker.join()
    assert isinstance(worker.raised, MemoryError)


def test_a_request_whose_id_is_in_use_is_refused(worker: WorkerThread, weights: Path) -> None:
    worker.load(weights, options=ROOMY)
    worker.send(chat("twice", ENDLESS))
    worker.events_until(lambda events: "twice" in events)
    worker.send(chat("twice", "x"))

    def refusals(events: dict[str, list[GenerationEvent]]) -> list[str]:
        return [event.code for event in events.get("twice", []) if isinstance(event, Failed)]

    assert refusals(worker.events_until(lambda events: bool(refusals(events)))) == ["invalid_parameter"]


def test_the_engine_too_has_a_bounded_queue(
    worker: WorkerThread, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runner.worker.loop.QUEUE_MAX", 64)
    worker.load(weights, options=ROOMY)
    running = [f"running {index}" for index in range(ROOMY.max_sequences)]
    worker.send(*(chat(name, ENDLESS) for name in running))
    worker.step_shared_by(*running)
    waiting = [f"waiting {index}" for index in range(64)]
    for name in waiting:
        worker.send(chat(name, "x"))
        worker.events_until(lambda events, name=name: name in events)  # type: ignore[misc]  # bound at once
    worker.send(chat("one more", "x"))
    (failed,) = worker.outcome("one more")
    assert isinstance(failed, Failed)
    assert failed.code == "queue_full"
    worker.send(*(Cancel(name) for name in (*running, *waiting)))


def test_a_generation_is_accepted_answered_and_finished(loaded: WorkerThread) -> None:
    loaded.send(chat("one", "[[say hello]]"))
    events = loaded.outcome("one")
    assert isinstance(events[0], Accepted)
    assert text_of(events) == "hello"
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert finished.reason is FinishReason.STOP
    assert finished.usage.prompt_tokens == events[0].prompt_tokens


def test_concurrent_generations_share_steps_and_frames(worker: WorkerThread, weights: Path) -> None:
    worker.load(weights, options=ROOMY)
    worker.send(chat("a", ENDLESS), chat("b", ENDLESS), chat("c", "[[count 20]]"))
    assert worker.step_shared_by("a", "b").running >= 2
    assert text_of(worker.outcome("c")) in " ".join(map(str, range(1, 21)))
    worked = [step.step_index for step in worker.steps if step.prefill_tokens or step.decode_tokens]
    assert worked == sorted(set(worked))


@pytest.mark.parametrize("tick_s", [0.0, FRAME_INTERVAL_S])
def test_text_waits_for_more_while_nobody_could_see_it(tick_s: float, weights: Path) -> None:
    """The clock moves by `tick_s` whenever it is asked."""
    ticks = itertools.count()
    worker = WorkerThread(clock=lambda: next(ticks) * tick_s)
    try:
        worker.load(weights, options=ROOMY)
        worker.send(chat("a", "[[count 20]]"))
        assert text_of(worker.outcome("a")) == " ".join(map(str, range(1, 21)))
        decoding = [step.decode_tokens for step in worker.steps if step.decode_tokens]
        assert sum(decoding) >= 20
        assert (max(decoding) == 1) == (tick_s > 0), "each for itself, or together"
    finally:
        worker.stop()


def test_a_cancelled_generation_stops_between_steps_and_frees_its_place(
    worker: WorkerThread, weights: Path
) -> None:
    worker.load(weights, options=ROOMY)
    worker.send(chat("endless", ENDLESS))
    worker.events_until(lambda events: len(events.get("endless", [])) > 3)
    worker.send(Cancel("endless"), chat("next", "[[say done]]"))
    events = worker.outcomes("next")
    assert text_of(events["next"]) == "done"
    assert not has_ended(events.get("endless", []))
    assert worker.steps[-1].running == 0
    assert worker.steps[-1].cells_used == 0


def test_steps_tell_what_is_kept_in_cells_and_in_host_memory(worker: WorkerThread, weights: Path) -> None:
    worker.load(weights, options=attrs.evolve(OPTIONS, max_retained=1, host_cells=512))
    for name in "ab":
        worker.send(chat(name, name * 100 + "[[say done]]"))
        worker.outcomes(name)
    last = worker.steps[-1]
    assert last.host_tokens == last.counts.saved_tokens > 100
    assert last.cells_retained > 100


def test_cancelling_an_unknown_request_changes_nothing(loaded: WorkerThread) -> None:
    loaded.send(Cancel("nobody"), chat("one", "[[say hello]]"))
    assert text_of(loaded.outcome("one")) == "hello"


def test_a_request_that_is_cancelled_at_once_does_not_run_to_its_end(
    worker: WorkerThread, weights: Path
) -> None:
    worker.load(weights, options=ROOMY)
    worker.send(chat("gone", ENDLESS), Cancel("gone"), chat("one", "[[say hello]]"))
    events = worker.outcomes("one")
    assert not has_ended(events.get("gone", []))
    assert worker.steps[-1].running == 0


def test_shutdown_ends_running_work_and_every_thread(worker: WorkerThread, weights: Path) -> None:
    worker.load(weights, options=ROOMY)
    worker.send(chat("endless", ENDLESS))
    worker.events_until(lambda events: len(events.get("endless", [])) > 3)
    worker.send(Shutdown())
    assert worker.join() == EXIT_DONE
    assert worker.exit_codes == []
    assert {thread.name for thread in threading.enumerate()}.isdisjoint({"reader", "preparation"})


def test_shutdown_before_and_instead_of_a_load_ends_the_worker(worker: WorkerThread) -> None:
    worker.send(Shutdown())
    assert worker.join() == EXIT_DONE


def test_shutdown_gives_up_a_load_under_way_without_calling_it_failed(
    worker: WorkerThread, tmp_path: Path
) -> None:
    weights = tmp_path / "slow"
    weights.write_bytes(b"[[load slow 50]]")
    assert isinstance(worker.receive(), Hello)
    worker.send(LoadModel(engine="scripted", weights_paths=(str(weights),), options=OPTIONS))
    assert isinstance(worker.receive(), LoadProgress)
    worker.send(Shutdown())
    while (message := worker.receive()) is not None:
        assert isinstance(message, LoadProgress)
    assert worker.join() == EXIT_DONE


def test_W10_a_closed_channel_ends_the_process_at_once(loaded: WorkerThread) -> None:
    loaded.close()
    loaded.join()
    assert loaded.exit_codes == [EXIT_DONE]


def test_bytes_outside_the_protocol_end_the_process(loaded: WorkerThread) -> None:
    loaded.send_bytes(b"\xff\xff\xff\xff")
    assert loaded.join() == EXIT_PROTOCOL
    assert loaded.exit_codes == [EXIT_PROTOCOL]


def test_only_a_model_may_be_the_first_thing_that_is_done(worker: WorkerThread) -> None:
    worker.send(Cancel("x"))
    assert worker.join() == EXIT_PROTOCOL


def test_a_second_model_is_a_fault(loaded: WorkerThread, weights: Path) -> None:
    loaded.send(LoadModel(engine="scripted", weights_paths=(str(weights),), options=OPTIONS))
    assert loaded.join() == EXIT_PROTOCOL


def test_a_request_sent_before_the_model_has_loaded_waits_for_it(worker: WorkerThread, weights: Path) -> None:
    assert isinstance(worker.receive(), Hello)
    worker.send(
        LoadModel(engine="scripted", weights_paths=(str(weights),), options=OPTIONS),
        chat("early", "[[say hello]]"),
    )
    while not isinstance(message := worker.receive(), Loaded):
        assert isinstance(message, LoadProgress)
    assert text_of(worker.outcome("early")) == "hello"


def test_a_daemon_that_does_not_read_is_left(weights: Path) -> None:
    with worker_thread(send_timeout_s=0.2) as worker:
        worker.load(weights)
        worker.send(chat("flood", "[[forever]]", ignore_eos=True, max_tokens=200))
        for name in range(60):
            worker.send(chat(f"flood {name}", "[[forever]]", ignore_eos=True, max_tokens=200))
        assert worker.join() == EXIT_DEAF_DAEMON


def test_a_change_of_threads_takes_effect_at_the_next_step(worker: WorkerThread, weights: Path) -> None:
    worker.load(weights, options=attrs.evolve(ROOMY, n_threads=4))
    worker.send(chat("one", "[[slow 5]][[threads 200]]"))
    worker.events_until(lambda events: "444" in text_of(events.get("one", [])))
    worker.send(SetThreads(1))
    worker.events_until(lambda events: "111" in text_of(events.get("one", [])))
    worker.send(SetThreads(3))
    worker.events_until(lambda events: "333" in text_of(events.get("one", [])))


def test_an_idle_worker_takes_a_change_of_threads_before_its_next_step(
    worker: WorkerThread, weights: Path
) -> None:
    worker.load(weights, options=attrs.evolve(ROOMY, n_threads=4))
    worker.send(SetThreads(2), chat("one", "[[threads 3]]"))
    assert text_of(worker.outcome("one")) == "222"


def test_a_worker_uses_no_more_threads_than_it_was_loaded_with(worker: WorkerThread, weights: Path) -> None:
    worker.load(weights, options=attrs.evolve(ROOMY, n_threads=4))
    worker.send(SetThreads(9), chat("one", "[[threads 3]]"))
    assert text_of(worker.outcome("one")) == "444"


def test_W01_pinned_devices_are_in_the_environment_when_the_engine_loads(
    worker: WorkerThread, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    seen: list[str] = []
    load = ScriptedBackend.load

    def look_and_load(*arguments: Any, **options: Any) -> ScriptedBackend:
        seen.append(os.environ["CUDA_VISIBLE_DEVICES"])
        return load(*arguments, **options)

    monkeypatch.setattr(ScriptedBackend, "load", look_and_load)
    assert isinstance(worker.receive(), Hello)
    pins = (DevicePin("CUDA_VISIBLE_DEVICES", "GPU-1"),)
    worker.send(LoadModel(engine="scripted", weights_paths=(str(weights),), options=OPTIONS, pins=pins))
    while not isinstance(worker.receive(), Loaded):
        pass
    assert seen == ["GPU-1"]


def test_an_idle_worker_takes_no_steps(loaded: WorkerThread) -> None:
    loaded.send(chat("one", "[[say hello]]"))
    loaded.outcome("one")
    before = loaded.steps[-1].step_index
    loaded.send(chat("two", "[[say x]]"))
    loaded.outcome("two")
    assert loaded.steps[-1].step_index - before < 10


# what a request may not be


def test_G11_a_prompt_longer_than_the_context_is_refused_with_both_numbers(loaded: WorkerThread) -> None:
    loaded.send(generate("long", TokenPrompt(tuple([65] * 300))))
    (failed,) = loaded.outcome("long")
    assert isinstance(failed, Failed)
    assert (failed.code, failed.prompt_tokens, failed.context_size) == ("context_length_exceeded", 300, 256)
    assert not any(step.prefill_tokens for step in loaded.steps)


@pytest.mark.parametrize(("n_tokens", "fits"), [(254, True), (255, True), (256, False), (257, False)])
def test_G11_one_token_of_the_context_is_kept_for_the_answer(
    loaded: WorkerThread, n_tokens: int, fits: bool
) -> None:
    loaded.send(generate("edge", TokenPrompt(tuple([65] * n_tokens)), ignore_eos=True))
    events = loaded.outcome("edge")
    assert isinstance(events[0], Accepted if fits else Failed)
    if fits:
        assert isinstance(events[-1], Finished)
        assert events[-1].usage.completion_tokens == 256 - n_tokens


@pytest.mark.parametrize("token_id", [-1, N_VOCAB, 10**12])
def test_N12_a_token_outside_the_vocabulary_is_refused_by_its_place(
    loaded: WorkerThread, token_id: int
) -> None:
    loaded.send(generate("bad", TokenPrompt((65, token_id))))
    (failed,) = loaded.outcome("bad")
    assert isinstance(failed, Failed)
    assert failed.code == "invalid_parameter"
    assert "prompt[1]" in failed.message


def test_an_empty_prompt_is_refused(loaded: WorkerThread) -> None:
    loaded.send(generate("empty", TokenPrompt(())))
    (failed,) = loaded.outcome("empty")
    assert isinstance(failed, Failed)
    assert failed.code == "invalid_parameter"


def test_G08_an_option_outside_the_allowlist_is_refused(loaded: WorkerThread) -> None:
    prompt = ChatPrompt(
        messages=(ChatMessage(role="user", content="x"),), template_options={"messages": "forged"}
    )
    loaded.send(generate("forged", prompt))
    (failed,) = loaded.outcome("forged")
    assert isinstance(failed, Failed)
    assert failed.code == "invalid_parameter"


def test_G09_a_template_that_fails_fails_its_request_and_no_other(
    worker: WorkerThread, weights: Path
) -> None:
    worker.load(
        weights, template="{{ raise_exception('no, thanks') if messages[0].content == 'bad' }}<|answer|>"
    )
    worker.send(chat("bad", "bad"), chat("good", "good", max_tokens=1))
    events = worker.outcomes("bad", "good")
    (failed,) = events["bad"]
    assert isinstance(failed, Failed)
    assert failed.code == "template_failed"
    assert "no, thanks" in failed.message
    assert isinstance(events["good"][-1], Finished)


def test_G07_an_endless_template_is_cut_while_others_go_on(worker: WorkerThread, weights: Path) -> None:
    endless = "{% for a in range(10000) %}{% for b in range(10000) %}{% endfor %}{% endfor %}"
    worker.load(weights, template=endless)
    worker.send(
        generate("running", TextPrompt("[[forever]]"), ignore_eos=True, max_tokens=200), chat("endless", "x")
    )
    events = worker.outcomes("running", "endless")
    (failed,) = events["endless"]
    assert isinstance(failed, Failed)
    assert failed.code == "template_failed"
    assert "2 s" in failed.message
    assert isinstance(events["running"][-1], Finished)


def test_more_requests_than_the_queue_holds_are_refused_at_once(weights: Path) -> None:
    may_render = threading.Event()

    @contextmanager
    def held_back() -> Iterator[None]:
        assert may_render.wait(PATIENCE_S)
        yield

    with worker_thread(limits_of=lambda _: held_back) as worker:
        worker.load(weights)
        names = [f"r{index}" for index in range(QUEUE_MAX + 1)]
        worker.send(*(chat(name, "x", max_tokens=1) for name in names))
        refused = worker.outcome(names[-1])
        may_render.set()
        served = worker.outcomes(*names[:-1])
    assert [event.code for event in refused if isinstance(event, Failed)] == ["queue_full"]
    assert all(isinstance(events[-1], Finished) for events in served.values())


@pytest.mark.parametrize("marker", ["<__media__>", "<image>", "<|image_pad|>", "[img-1]"])
def test_G10_a_media_marker_without_its_media_is_text(loaded: WorkerThread, marker: str) -> None:
    loaded.send(chat("marker", marker))
    assert text_of(loaded.outcome("marker")) == marker


def test_deltas_carry_whole_characters(loaded: WorkerThread) -> None:
    loaded.send(chat("smile", "[[say naïve 😀 end]]"))
    events = loaded.outcome("smile")
    assert text_of(events) == "naïve 😀 end"
    assert all("\ufffd" not in event.text for event in events if isinstance(event, TextDelta))
