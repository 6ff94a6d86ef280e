"""Embeddings through the worker's loop with the scripted engine: by a generating model, and by an encoder."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.domain.events import Accepted, Embedded, Failed, Finished, GenerationEvent, TextDelta
from runner.domain.generation import EmbeddingPrompt, GenerationRequest, TextPrompt, TokenPrompt
from runner.wire.messages import AnnexClosed, Cancel, CloseAnnex, Generate
from tests.support.worker_peer import ENDLESS, ROOMY, WorkerThread, chat, text_of, worker_thread


@pytest.fixture
def loaded(tmp_path: Path) -> Iterator[WorkerThread]:
    yield from worker_of(tmp_path, b"no directives")


@pytest.fixture
def encoder(tmp_path: Path) -> Iterator[WorkerThread]:
    yield from worker_of(tmp_path, b"[[load encoder]]")


def worker_of(directory: Path, content: bytes) -> Iterator[WorkerThread]:
    weights = directory / "weights"
    weights.write_bytes(content)
    with worker_thread() as worker:
        worker.load(weights, options=ROOMY)
        yield worker


def embedding(request_id: str, *inputs: TextPrompt | TokenPrompt, **fields: object) -> Generate:
    prompt = EmbeddingPrompt(inputs=inputs, **fields)  # type: ignore[arg-type]  # whatever a test wants to set
    return Generate(GenerationRequest(request_id=request_id, prompt=prompt))


def vectors_of(events: list[GenerationEvent]) -> dict[int, tuple[float, ...]]:
    return {
        event.input_index: struct.unpack(f"<{len(event.vector) // 4}f", event.vector)
        for event in events
        if isinstance(event, Embedded)
    }


def test_vectors_come_with_their_usage(loaded: WorkerThread) -> None:
    loaded.send(embedding("one", TokenPrompt((8, 8, 8)), TokenPrompt((1,)), TokenPrompt((0, 1))))
    accepted, *events = loaded.outcome("one")
    assert accepted == Accepted(prompt_tokens=3)
    vectors = vectors_of(events)
    assert vectors[0] == pytest.approx((1, *[0] * 7))
    assert vectors[1] == pytest.approx((0, 1, *[0] * 6))
    assert vectors[2] == pytest.approx((0.5**0.5, 0.5**0.5, *[0] * 6))
    last = events[-1]
    assert isinstance(last, Finished)
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (6, 0)


def test_an_encoder_makes_embeddings_and_refuses_to_generate(encoder: WorkerThread) -> None:
    encoder.send(embedding("one", TextPrompt("hi"), dimensions=3), chat("two", "[[say hello]]"))
    events = encoder.outcomes("one", "two")
    assert len(vectors_of(events["one"])[0]) == 3
    [failed] = events["two"]
    assert isinstance(failed, Failed)
    assert failed.code == "invalid_parameter"
    assert failed.message.startswith("model: is made for embeddings")


def test_a_stream_goes_on_beside_embeddings(loaded: WorkerThread) -> None:
    loaded.send(chat("text", "[[count 30]]"), embedding("vectors", *[TokenPrompt((1,) * 60)] * 50))
    events = loaded.outcomes("text", "vectors")
    assert text_of(events["text"]).endswith("30")
    assert len(vectors_of(events["vectors"])) == 50


def test_what_cannot_be_embedded_is_refused_with_its_fields(loaded: WorkerThread) -> None:
    loaded.send(embedding("one", TextPrompt("a"), TextPrompt("x" * 5000)))
    [failed] = loaded.outcome("one")
    assert isinstance(failed, Failed)
    assert failed.message == (
        "input[1]: has 5002 tokens, and the model takes 2048, unless truncate asks to cut it"
    )


def test_a_pass_that_fails_costs_only_its_own_request(loaded: WorkerThread) -> None:
    loaded.send(embedding("bad", TextPrompt("[[fail]]")), embedding("good", TextPrompt("fine")))
    events = loaded.outcomes("bad", "good")
    assert isinstance(events["bad"][-1], Failed)
    assert len(vectors_of(events["good"])) == 1


def test_cancelled_embeddings_tell_nothing_more(loaded: WorkerThread) -> None:
    loaded.send(chat("text", ENDLESS), embedding("gone", *[TokenPrompt((1,) * 64)] * 500))
    loaded.events_until(lambda events: any(isinstance(one, Embedded) for one in events.get("gone", [])))
    loaded.send(Cancel("gone"), embedding("next", TokenPrompt((2,))))
    events = loaded.outcomes("next")
    assert len(vectors_of(events["next"])) == 1
    assert len(vectors_of(events.get("gone", []))) < 500
    after = loaded.events_until(lambda events: len(events.get("text", [])) > 3)
    assert "gone" not in after
    assert any(isinstance(event, TextDelta) for event in after["text"])


def closed(worker: WorkerThread) -> None:
    """Have the second context closed; returns when the worker says that it is."""
    worker.send(CloseAnnex())
    while not isinstance(worker.receive(), AnnexClosed):
        pass


def test_the_second_context_is_given_back_on_request_and_opened_again(loaded: WorkerThread) -> None:
    closed(loaded)  # there is none yet
    for request_id in ("one", "two"):
        loaded.send(embedding(request_id, TokenPrompt((1,))))
        assert len(vectors_of(loaded.outcome(request_id))) == 1
        closed(loaded)


def test_streams_go_on_while_the_second_context_is_closed(loaded: WorkerThread) -> None:
    loaded.send(embedding("vectors", TokenPrompt((1,))))
    assert len(vectors_of(loaded.outcome("vectors"))) == 1
    loaded.send(chat("text", ENDLESS))
    loaded.events_until(lambda events: len(events.get("text", [])) > 3)
    closed(loaded)
    after = loaded.events_until(lambda events: len(events.get("text", [])) > 3)
    assert any(isinstance(event, TextDelta) for event in after["text"])
