"""Shapes in and out: requests for workers, replies, chunks, the model list."""

from __future__ import annotations

import json
import math
import timeit
from typing import Any

import attrs
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.api.collecting import Choice, Completed
from runner.api.openai import convert, replies
from runner.api.openai.replies import CHAT, COMPLETION, ReplyHead, StreamEncoder
from runner.api.openai.schema import parse_chat, parse_completion
from runner.domain.events import Accepted, Failed, Finished, FinishReason, TextDelta, Timings, Usage
from runner.domain.generation import ChatMessage, ChatPrompt, GenerationRequest, TextPrompt
from runner.domain.sampling import INTEGERS, RANGES, SamplingParams, Stage
from runner.domain.settings import ModelSettings
from runner.errors import WorkerCrashed
from tests.support.fake_handles import fake_model

HEAD = ReplyHead(reply_id="chatcmpl-1", created_s=1700000000, model="ai/smollm2")
FINISHED = Finished(
    reason=FinishReason.LENGTH,
    usage=Usage(prompt_tokens=10, completion_tokens=4, cached_tokens=6),
    timings=Timings(queued_s=0.0015, prefill_s=0.02, decode_s=0.5),
)


def events_in(stream: bytes) -> list[Any]:
    """The events of an event stream, as a reader takes them: JSON, or the text where it is none."""
    assert stream.endswith(b"\n\n")
    found: list[Any] = []
    for block in stream.decode().removesuffix("\n\n").split("\n\n"):
        data = "\n".join(line.removeprefix("data: ") for line in block.split("\n") if line[:1] != ":")
        found.append(json.loads(data) if data[:1] == "{" else data or block)
    return found


def encoder(shape: replies.Shape = CHAT, *, has_usage_chunk: bool = False) -> StreamEncoder:
    made = StreamEncoder(shape, HEAD, has_usage_chunk=has_usage_chunk)
    made.opening("fp_1")
    return made


def test_a_chat_request_becomes_a_request_to_a_worker() -> None:
    body = {
        "model": "ai/smollm2",
        "messages": [{"role": "user", "content": "Why?"}],
        "temperature": 0,
        "top_k": 5,
        "seed": 3,
        "max_tokens": 9,
        "max_completion_tokens": 7,
        "stop": ["a", "b"],
        "ignore_eos": True,
        "chat_template_kwargs": {"thinking": True},
    }
    assert convert.generation_request(parse_chat(orjson.dumps(body)), "r1") == GenerationRequest(
        request_id="r1",
        prompt=ChatPrompt(
            messages=(ChatMessage(role="user", content="Why?"),), template_options={"thinking": True}
        ),
        sampling=SamplingParams(temperature=0.0, top_k=5, seed=3),
        max_tokens=7,
        stop=("a", "b"),
        ignore_eos=True,
    )


def test_every_sampling_field_reaches_the_worker() -> None:
    numbers: dict[str, Any] = {
        name: int(bounds.high) if name in INTEGERS else bounds.high for name, bounds in RANGES.items()
    }
    body = {
        "model": "ai/smollm2",
        "prompt": "Why?",
        **numbers,
        "dry_sequence_breakers": ["."],
        "logit_bias": {"5": -100, "7": 2.5},
        "samplers": ["temperature", "top_k"],
    }
    assert convert.generation_request(parse_completion(orjson.dumps(body)), "r1").sampling == SamplingParams(
        **numbers,
        dry_sequence_breakers=(".",),
        logit_bias=((5, -100.0), (7, 2.5)),
        samplers=(Stage.TEMPERATURE, Stage.TOP_K),
    )


def test_repetition_penalty_is_another_name_of_repeat_penalty() -> None:
    body = {"model": "a", "prompt": "Why?", "repetition_penalty": 1.5}
    request = convert.generation_request(parse_completion(orjson.dumps(body)), "r1")
    assert request.sampling == SamplingParams(repeat_penalty=1.5)


def test_what_was_not_sent_takes_the_domains_defaults() -> None:
    body = {"model": "ai/smollm2", "prompt": "Why?", "stop": "x"}
    assert convert.generation_request(parse_completion(orjson.dumps(body)), "r1") == GenerationRequest(
        request_id="r1", prompt=TextPrompt("Why?"), stop=("x",)
    )


@pytest.mark.parametrize(
    ("sent", "bound"),
    [
        ({}, None),
        ({"max_tokens": 5}, 5),
        ({"max_completion_tokens": 6}, 6),
        ({"max_tokens": 5, "max_completion_tokens": 6}, 5),
    ],
)
def test_both_names_of_the_token_limit_hold(sent: dict[str, int], bound: int | None) -> None:
    body = {"model": "a", "messages": [{"role": "user", "content": ""}], **sent}
    assert convert.generation_request(parse_chat(orjson.dumps(body)), "r1").max_tokens == bound


@pytest.mark.parametrize("options", [None, {}, {"include_usage": False}, {"include_usage": None}])
def test_a_usage_chunk_comes_only_when_it_was_asked_for(options: Any) -> None:
    body = {"model": "a", "messages": [{"role": "user", "content": ""}], "stream_options": options}
    assert not convert.wants_usage_chunk(parse_chat(orjson.dumps(body)))
    body["stream_options"] = {"include_usage": True}
    assert convert.wants_usage_chunk(parse_chat(orjson.dumps(body)))


def test_reasoning_is_told_apart_in_chats_unless_it_is_to_stay() -> None:
    body = {"model": "a", "messages": [{"role": "user", "content": ""}], "reasoning_effort": "none"}
    asked = convert.generation_request(parse_chat(orjson.dumps(body)), "r1")
    assert asked.separates_reasoning
    assert isinstance(asked.prompt, ChatPrompt)
    assert asked.prompt.reasoning_effort == "none"
    for kind, is_separated in (("none", False), ("auto", True), ("deepseek", True)):
        asked = convert.generation_request(parse_chat(orjson.dumps({**body, "reasoning_format": kind})), "r1")
        assert asked.separates_reasoning is is_separated


def test_a_chat_reply_has_the_shape_that_clients_read() -> None:
    completed = Completed(
        choices=(Choice(text='"Hi"\n', reason=FINISHED.reason),), finished=FINISHED, fingerprint="fp_1"
    )
    assert json.loads(replies.reply(CHAT, HEAD, completed)) == {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1700000000,
        "model": "ai/smollm2",
        "system_fingerprint": "fp_1",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": '"Hi"\n'},
                "logprobs": None,
                "finish_reason": "length",
            }
        ],
        "usage": {
            "prompt_tokens": 10,
            "completion_tokens": 4,
            "total_tokens": 14,
            "prompt_tokens_details": {"cached_tokens": 6},
            "completion_tokens_details": {"reasoning_tokens": 0},
        },
        "timings": {
            "cache_n": 6,
            "queued_ms": 1.5,
            "prompt_n": 4,
            "prompt_ms": 20.0,
            "prompt_per_token_ms": 5.0,
            "prompt_per_second": 200.0,
            "predicted_n": 4,
            "predicted_ms": 500.0,
            "predicted_per_token_ms": 125.0,
            "predicted_per_second": 8.0,
        },
    }


def test_a_text_reply_has_its_text_in_the_choice() -> None:
    completed = Completed(
        choices=(Choice(text="Hi", reason=FINISHED.reason),), finished=FINISHED, fingerprint="fp_1"
    )
    answer = json.loads(replies.reply(COMPLETION, HEAD, completed))
    assert answer["object"] == "text_completion"
    assert answer["choices"] == [{"index": 0, "text": "Hi", "logprobs": None, "finish_reason": "length"}]


def test_rates_of_nothing_are_zero() -> None:
    timings = replies.timings_object(
        Usage(prompt_tokens=5, completion_tokens=0, cached_tokens=5),
        Timings(queued_s=0.0, prefill_s=0.0, decode_s=0.0),
    )
    assert timings["prompt_per_second"] == timings["predicted_per_token_ms"] == 0.0


def test_a_streamed_chat_answer_is_role_deltas_reason_and_end_marker() -> None:
    made = StreamEncoder(CHAT, HEAD, has_usage_chunk=False)
    stream = made.opening("fp_1") + made.encode([Accepted(prompt_tokens=10), TextDelta("He", 1)])
    stream += made.encode([TextDelta("", 1), TextDelta("y", 2), FINISHED])
    *chunks, done = events_in(stream)
    assert done == "[DONE]"
    common = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1700000000,
        "model": "ai/smollm2",
        "system_fingerprint": "fp_1",
    }
    assert all(chunk.items() >= common.items() for chunk in chunks)
    assert [(chunk["choices"][0]["delta"], chunk["choices"][0]["finish_reason"]) for chunk in chunks] == [
        ({"role": "assistant", "content": ""}, None),
        ({"content": "He"}, None),
        ({"content": "y"}, None),
        ({}, "length"),
    ]
    assert ["timings" in chunk for chunk in chunks] == [False, False, False, True]
    assert all("usage" not in chunk for chunk in chunks)


def test_a_usage_chunk_follows_the_reason_and_carries_the_timings() -> None:
    made = StreamEncoder(CHAT, HEAD, has_usage_chunk=True)
    *chunks, done = events_in(made.opening("fp_1") + made.encode([TextDelta("Hey", 1), FINISHED]))
    assert done == "[DONE]"
    assert [chunk["usage"] for chunk in chunks[:-1]] == [None, None, None]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["total_tokens"] == 14
    assert chunks[-1]["timings"]["predicted_n"] == 4
    assert "timings" not in chunks[-2]


def test_a_streamed_text_answer_has_no_role_chunk() -> None:
    made = StreamEncoder(COMPLETION, HEAD, has_usage_chunk=False)
    assert made.opening("fp_1") == b""
    *chunks, done = events_in(made.encode([TextDelta("Hey", 1), FINISHED]))
    assert done == "[DONE]"
    assert [(c["choices"][0]["text"], c["choices"][0]["finish_reason"]) for c in chunks] == [
        ("Hey", None),
        ("", "length"),
    ]
    assert {c["object"] for c in chunks} == {"text_completion"}


@pytest.mark.parametrize("events", [[], [Accepted(prompt_tokens=1)], [TextDelta("", 3)]])
def test_events_without_text_make_no_bytes(events: list[Any]) -> None:
    assert encoder().encode(events) == b""


def test_L01_an_error_is_an_event_in_openais_shape_and_no_end_marker_follows() -> None:
    crashed = WorkerCrashed(model="ai/smollm2", cause="signal SIGSEGV")
    for stream in (
        encoder().error(crashed),
        StreamEncoder(CHAT, HEAD, has_usage_chunk=False).error(crashed),  # before anything else
    ):
        [event] = events_in(stream)
        assert event["error"]["code"] == "worker_crashed"
        assert event["error"].keys() == {"message", "type", "param", "code"}
    failed = Failed(code="template_failed", message="no")
    *_, last = events_in(encoder().encode([TextDelta("x", 1), failed]))
    assert last["error"]["code"] == "template_failed"


def test_a_sign_of_life_is_a_comment_that_readers_skip() -> None:
    assert encoder().idle().startswith(b":")
    assert encoder().idle().endswith(b"\n\n")


NASTY = st.text(st.characters(codec="utf-8") | st.sampled_from('\r\n\0\u2028\\"'), min_size=1)


@given(st.lists(NASTY, max_size=5), st.booleans(), st.sampled_from([CHAT, COMPLETION]))
def test_N20_whatever_the_model_says_the_stream_parses_to_exactly_these_texts(
    texts: list[str], has_usage_chunk: bool, shape: replies.Shape
) -> None:
    made = encoder(shape, has_usage_chunk=has_usage_chunk)
    stream = made.encode([*(TextDelta(text, 1) for text in texts), FINISHED])
    stream.decode()
    assert b"\r" not in stream
    chunks = [chunk for chunk in events_in(stream)[:-1] if chunk["choices"]]
    told = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["finish_reason"] is None]
    assert [choice["delta"]["content"] if shape is CHAT else choice["text"] for choice in told] == texts


def test_N20_newlines_and_event_lines_in_text_start_no_event() -> None:
    text = "\n\nevent: evil\ndata: [DONE]\n\n\r\rdata: x"
    [chunk] = events_in(encoder().encode([TextDelta(text, 1)]))
    assert chunk["choices"][0]["delta"]["content"] == text


def test_a_model_is_listed_under_its_first_name_with_what_is_known_of_it() -> None:
    model = fake_model()
    assert convert.model_list([model], 8192) == {
        "object": "list",
        "data": [
            {
                "id": "docker.io/ai/smollm2:135M-Q4_1",
                "object": "model",
                "created": 1745777589,
                "owned_by": "docker",
                "dmr": {
                    "context_window": 8192,
                    "architecture": "llama",
                    "parameters": "134.52M",
                    "quantization": "MOSTLY_Q4_1",
                    "size": "93.46MiB",
                },
            }
        ],
    }


def test_a_model_without_names_is_listed_by_its_id_and_unknown_facts_are_left_out() -> None:
    model = attrs.evolve(
        fake_model(""), architecture="", parameters="", quantization="", trained_context_size=None
    )
    entry = convert.model_object(model, 8192)
    assert entry["id"] == str(model.id)
    assert entry["dmr"].keys() == {"size", "context_window"}


@pytest.mark.parametrize(
    ("packaged", "trained", "window"),
    [
        (None, 2048, 2048),
        (None, 8192, 8192),
        (None, 131072, 8192),
        (None, None, 8192),
        (4096, 2048, 2048),
        (1024, 2048, 1024),
        (16384, 131072, 16384),
        (512, None, 512),
    ],
)
def test_the_context_window_is_what_was_packaged_else_the_default_within_what_was_trained(
    packaged: int | None, trained: int | None, window: int
) -> None:
    model = attrs.evolve(fake_model(), context_size=packaged, trained_context_size=trained)
    assert convert.context_window(model, 8192) == window


def test_the_context_window_is_what_was_configured_before_what_was_packaged() -> None:
    model = attrs.evolve(fake_model(), context_size=1024, settings=ModelSettings(context_size=512))
    assert convert.context_window(model, 8192) == 512


def test_what_was_sent_is_told_apart_from_what_was_not() -> None:
    body = {"model": "a", "prompt": "Why?", "temperature": 0, "keep_alive": -1, "seed": None}
    said = convert.said_of(parse_completion(orjson.dumps(body)))
    assert said == ModelSettings(temperature=0.0, keep_alive_s=math.inf)


def test_a_token_costs_one_small_encoding() -> None:
    """About 1 us on a quiet machine; the bound here is for a busy one."""
    made, events = encoder(), [TextDelta(" because", 1)]
    assert min(timeit.repeat(lambda: made.encode(events), number=200, repeat=20)) / 200 < 20e-6
