"""What a request may ask of its answers, through a daemon and a worker, on the scripted engine."""

from __future__ import annotations

import json
import urllib.error
from typing import Any

import pytest

from tests.support.daemon import RunningDaemon
from tests.support.sse import post_stream


def chat(text: str, **fields: Any) -> dict[str, Any]:
    return {"model": "one", "messages": [{"role": "user", "content": text}], **fields}


def refused(daemon: RunningDaemon, path: str, body: dict[str, Any]) -> dict[str, Any]:
    with pytest.raises(urllib.error.HTTPError) as caught:
        daemon.post(path, body)
    assert caught.value.code == 400
    error: dict[str, Any] = json.loads(caught.value.read())["error"]
    return error


def test_an_answer_is_held_to_its_schema(daemon: RunningDaemon) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    wished = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": schema}}
    said = chat('[[say {"a": 12} and more]]', response_format=wished)
    [choice] = daemon.post("/v1/chat/completions", said)["choices"]
    assert json.loads(choice["message"]["content"]) == {"a": 12}
    assert choice["finish_reason"] == "stop"
    unruly = chat("[[say hello]]", response_format=wished, max_tokens=200, stream=True)
    with post_stream(daemon.port, "/v1/chat/completions", unruly) as stream:
        events = list(stream.events())
    text = "".join(
        choice["delta"].get("content") or "" for event in events[:-1] for choice in event["choices"]
    )
    assert text.startswith("{")


def test_N15_what_does_not_compile_is_a_400_that_names_it(daemon: RunningDaemon) -> None:
    wished = {"type": "json_object", "schema": {"type": "array", "uniqueItems": True}}
    error = refused(daemon, "/v1/chat/completions", chat("x", response_format=wished))
    assert (error["code"], error["param"]) == ("invalid_parameter", "response_format.schema")
    assert "uniqueItems" in error["message"]
    error = refused(daemon, "/v1/chat/completions", chat("x", grammar="root = x", stream=True))
    assert error["param"] == "grammar"


def test_several_answers_with_logprobs(daemon: RunningDaemon) -> None:
    body = chat("[[say hi]]", n=3, logprobs=True, top_logprobs=2)
    answer = daemon.post("/v1/chat/completions", body)
    assert [one["message"]["content"] for one in answer["choices"]] == ["hi"] * 3
    for one in answer["choices"]:
        assert [token["token"] for token in one["logprobs"]["content"]] == ["h", "i"]
        assert all(len(token["top_logprobs"]) == 2 for token in one["logprobs"]["content"])
    assert answer["usage"]["completion_tokens"] == 9
    assert answer["timings"]["predicted_n"] == 9


def test_an_echoed_prompt_with_its_logprobs(daemon: RunningDaemon) -> None:
    body = {"model": "one", "prompt": [97, 98, 99], "echo": True, "logprobs": 1, "max_tokens": 2}
    [choice] = daemon.post("/v1/completions", body)["choices"]
    assert choice["text"] == "abcde"
    assert choice["logprobs"]["tokens"] == ["a", "b", "c", "d", "e"]
    assert choice["logprobs"]["text_offset"] == [0, 1, 2, 3, 4]
    assert choice["logprobs"]["token_logprobs"][0] is None


def test_a_bias_beyond_the_vocabulary_is_a_400(daemon: RunningDaemon) -> None:
    error = refused(daemon, "/v1/chat/completions", chat("x", logit_bias={"1000000": 1}))
    assert error["param"] == "logit_bias[1000000]"


def test_what_a_model_makes_of_prompts(daemon: RunningDaemon) -> None:
    told = daemon.post("/control/v1/tokenize", {"model": "one", "prompt": "hi", "add_special": False})
    assert (told["tokens"], told["count"]) == ([104, 105], 2)
    told = daemon.post("/control/v1/detokenize", {"model": "one", "tokens": [104, 105]})
    assert told["text"] == "hi"
    messages = [{"role": "user", "content": "hi"}]
    told = daemon.post("/control/v1/apply-template", {"model": "one", "messages": messages})
    assert told["prompt"] == "<|user|>hi<|end|><|answer|>"
    assert daemon.post("/control/v1/count-tokens", {"model": "one", "messages": messages})["count"] == 6
    error = refused(daemon, "/control/v1/detokenize", {"model": "one", "tokens": [10**6]})
    assert error["param"] == "prompt[0]"


def test_several_prompts_are_answered_in_one_request(daemon: RunningDaemon) -> None:
    prompts = ["[[say a]]", "[[say bb]]", "[[say ccc]]"]
    answer = daemon.post("/v1/completions", {"model": "one", "prompt": prompts, "n": 2, "echo": True})
    told = [(one["index"], one["text"]) for one in answer["choices"]]
    assert told == [
        (2 * number + choice, prompt + text)
        for number, (prompt, text) in enumerate(zip(prompts, ("a", "bb", "ccc"), strict=True))
        for choice in (0, 1)
    ]
    singles = [daemon.post("/v1/completions", {"model": "one", "prompt": one, "n": 2}) for one in prompts]
    for count in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert answer["usage"][count] == sum(one["usage"][count] for one in singles)


def test_several_prompts_stream_side_by_side(daemon: RunningDaemon) -> None:
    body = {
        "model": "one",
        "prompt": ["[[count 5]]", "[[count 7]]", "[[say done]]"],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    with post_stream(daemon.port, "/v1/completions", body) as stream:
        events = list(stream.events())
    *chunks, usage, end = events
    assert end == "[DONE]"
    assert usage["usage"]["completion_tokens"] > 12
    texts: dict[int, str] = {}
    reasons: dict[int, str] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
            if choice["finish_reason"]:
                reasons[choice["index"]] = choice["finish_reason"]
    assert (texts[0].split()[-1], texts[1].split()[-1], texts[2]) == ("5", "7", "done")
    assert reasons == {0: "stop", 1: "stop", 2: "stop"}


def test_a_prompt_that_cannot_be_answered_is_named(daemon: RunningDaemon) -> None:
    error = refused(daemon, "/v1/completions", {"model": "one", "prompt": ["fine", "x" * 20_000]})
    assert error["code"] == "context_length_exceeded"
    assert error["message"].startswith("prompt[1] has")
    error = refused(daemon, "/v1/completions", {"model": "one", "prompt": [[5], [10**6]]})
    assert (error["code"], error["param"]) == ("invalid_parameter", "prompt[1][0]")
