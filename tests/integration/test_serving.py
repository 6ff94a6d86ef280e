"""One daemon, its HTTP surface, and the scripted engine behind it."""

from __future__ import annotations

import http.client
import json
import signal
import time
import urllib.error
from collections.abc import Callable
from typing import Any

import psutil
import pytest

from tests.support.daemon import RunningDaemon
from tests.support.sse import post_stream


def chat(text: str, **fields: Any) -> dict[str, Any]:
    return {"model": "one", "messages": [{"role": "user", "content": text}], **fields}


def wait_until(condition: Callable[[], bool], *, within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not become true in time"
        time.sleep(0.02)


def workers(daemon: RunningDaemon) -> dict[str, dict[str, Any]]:
    return {worker["model"]: worker for worker in daemon.get("/control/v1/ps")["workers"]}


@pytest.mark.parametrize("prefix", ["/v1", "/engines/v1", "/engines/llama.cpp/v1"])
def test_a_chat_completion_under_every_prefix(daemon: RunningDaemon, prefix: str) -> None:
    answer = daemon.post(f"{prefix}/chat/completions", chat("hello"))
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "hello"} | {
        key: value for key, value in answer["choices"][0]["message"].items() if key not in ("role", "content")
    }
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] >= 5


def test_a_text_completion(daemon: RunningDaemon) -> None:
    answer = daemon.post("/v1/completions", {"model": "one", "prompt": "[[say well]]", "max_tokens": 3})
    assert answer["choices"][0]["text"] == "wel"
    assert answer["choices"][0]["finish_reason"] == "length"


def test_a_stream_ends_with_usage_and_done(daemon: RunningDaemon) -> None:
    body = chat("[[count 5]]", stream=True, stream_options={"include_usage": True})
    with post_stream(daemon.port, "/v1/chat/completions", body) as stream:
        assert stream.status == 200
        events = list(stream.events())
    assert events[-1] == "[DONE]"
    assert events[-2]["choices"] == []
    assert events[-2]["usage"]["completion_tokens"] >= 9
    text = "".join(
        choice["delta"].get("content") or "" for event in events[:-1] for choice in event["choices"]
    )
    assert text == "1 2 3 4 5"


def test_models_are_listed_and_shown_by_name_and_digest(daemon: RunningDaemon) -> None:
    listed = daemon.get("/v1/models")
    assert {model["id"] for model in listed["data"]} >= {"docker.io/ai/one:latest", "docker.io/ai/two:latest"}
    digest = next(
        model["id"] for model in daemon.get("/control/v1/models") if model["name"].startswith("ai/one")
    )
    for name in ("one", "ai/one:latest", digest, digest.removeprefix("sha256:")[:12]):
        assert daemon.get(f"/v1/models/{name}")["object"] == "model"
        assert daemon.post("/v1/chat/completions", {**chat("x"), "model": name})["choices"]


def test_unknown_models_and_bad_fields_are_errors_in_openai_shape(daemon: RunningDaemon) -> None:
    with pytest.raises(urllib.error.HTTPError) as missing:
        daemon.post("/v1/chat/completions", {**chat("x"), "model": "nowhere"})
    assert missing.value.code == 404
    assert json.loads(missing.value.read())["error"]["code"] == "model_not_found"
    with pytest.raises(urllib.error.HTTPError) as wrong:
        daemon.post("/v1/chat/completions", {**chat("x"), "temperature": 9, "top_p": "a lot"})
    assert wrong.value.code == 400
    message = json.loads(wrong.value.read())["error"]["message"]
    assert "temperature" in message
    assert "top_p" in message


def test_G11_a_prompt_beyond_the_context_is_refused_with_both_numbers(daemon: RunningDaemon) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        daemon.post("/v1/chat/completions", {**chat("x" * 2000, stream=True), "model": "two"})
    assert refused.value.code == 400
    error = json.loads(refused.value.read())["error"]
    assert error["code"] == "context_length_exceeded"
    assert "512" in error["message"]


def test_eight_streams_share_one_worker(daemon: RunningDaemon) -> None:
    from contextlib import ExitStack

    with ExitStack() as stack:
        streams = [
            stack.enter_context(
                post_stream(
                    daemon.port, "/v1/chat/completions", chat(f"[[slow 5]][[count {20 + n}]]", stream=True)
                )
            )
            for n in range(8)
        ]
        texts = ["".join(stream.text_deltas()) for stream in streams]
    assert [text.split()[-1] for text in texts] == [str(20 + n) for n in range(8)]
    assert len([worker for worker in workers(daemon).values() if worker["model"].startswith("ai/one")]) == 1


def test_N23_a_client_that_leaves_frees_its_place_within_a_second(daemon: RunningDaemon) -> None:
    with post_stream(
        daemon.port, "/v1/chat/completions", chat("[[slow 20]][[forever]]", stream=True)
    ) as stream:
        next(stream.text_deltas())
        assert workers(daemon)["ai/one"]["running_sequences"] >= 1
    wait_until(lambda: workers(daemon)["ai/one"]["leases"] == 0, within_s=1.0)
    wait_until(lambda: workers(daemon)["ai/one"]["running_sequences"] == 0, within_s=1.0)
    assert "error" not in daemon.log.lower()


def test_N23_a_client_that_leaves_a_plain_request_frees_its_place(daemon: RunningDaemon) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=10)
    body = json.dumps(chat("[[slow 20]][[forever]]")).encode()
    connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    wait_until(lambda: workers(daemon).get("ai/one", {}).get("running_sequences", 0) >= 1, within_s=10)
    connection.close()
    wait_until(lambda: workers(daemon)["ai/one"]["running_sequences"] == 0, within_s=1.5)


def test_keep_alive_zero_unloads_after_the_answer_and_unload_frees(daemon: RunningDaemon) -> None:
    daemon.post("/v1/chat/completions", {**chat("x"), "model": "two", "keep_alive": 0})
    wait_until(lambda: "ai/two" not in workers(daemon), within_s=10)
    daemon.post("/control/v1/start", {"model": "two"})
    assert workers(daemon)["ai/two"]["state"] == "ready"
    report = daemon.post("/control/v1/unload", {"models": ["two"]})
    assert report["unloaded"] == ["ai/two"]
    assert "ai/two" not in workers(daemon)


def test_L01_a_worker_killed_in_mid_stream_ends_with_an_error_event_and_no_done(
    own_daemon: RunningDaemon,
) -> None:
    daemon = own_daemon
    daemon.post("/control/v1/start", {"model": "two"})
    two_before = workers(daemon)["ai/two"]["pid"]
    with post_stream(
        daemon.port, "/v1/chat/completions", chat("[[slow 20]][[forever]]", stream=True)
    ) as stream:
        events = stream.events()
        next(events)
        next(events)
        psutil.Process(workers(daemon)["ai/one"]["pid"]).send_signal(signal.SIGKILL)
        rest = list(events)
    assert rest[-1]["error"]["code"] == "worker_crashed"
    assert "[DONE]" not in rest
    assert daemon.post("/v1/chat/completions", chat("again"))["choices"][0]["message"]["content"] == "again"
    assert workers(daemon)["ai/two"]["pid"] == two_before


def test_L01_a_worker_that_dies_before_the_first_byte_is_tried_once_more_then_502(
    own_daemon: RunningDaemon,
) -> None:
    with pytest.raises(urllib.error.HTTPError) as failed:
        own_daemon.post("/v1/chat/completions", chat("[[crash segv]]"))
    error = json.loads(failed.value.read())["error"]
    assert (failed.value.code, error["code"]) == (502, "worker_crashed"), error
    assert (
        own_daemon.post("/v1/chat/completions", chat("alive"))["choices"][0]["message"]["content"] == "alive"
    )


def test_removing_a_loaded_model_is_refused_and_works_after_unloading(own_daemon: RunningDaemon) -> None:
    daemon = own_daemon
    daemon.post("/control/v1/start", {"model": "one"})
    refused = daemon.runner("ctl", "rm", "one", check=False)
    assert refused.returncode == 1
    assert "unload" in refused.stderr
    daemon.runner("ctl", "unload", "one")
    daemon.runner("ctl", "rm", "one")
    names = [model["name"] for model in daemon.get("/control/v1/models")]
    assert "ai/one" not in names
