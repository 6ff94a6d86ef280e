"""`run` with a prompt: what is sent, what is printed, and how it ends."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterable
from typing import Any

import pytest

from runner.cli.chat import Conversation
from runner.client import Client
from tests.support.control import Cli
from tests.support.scripted_server import (
    STREAM_END,
    STREAM_HEAD,
    Request,
    delta,
    event,
    refusal,
    stream,
)

CHAT = "POST /v1/chat/completions"
LAST = {
    "usage": {
        "prompt_tokens": 12,
        "completion_tokens": 40,
        "total_tokens": 52,
        "prompt_tokens_details": {"cached_tokens": 0},
    },
    "timings": {"prompt_per_second": 900.04, "predicted_per_second": 85.1},
}


@pytest.fixture
def model(cli: Cli) -> Cli:
    """A model `m` that says `Hi there`."""
    cli.routes["GET /v1/models/m"] = {"id": "docker.io/ai/m:latest"}
    cli.routes[CHAT] = lambda _: stream("Hi", " there", **LAST)
    return cli


def sent(cli: Cli) -> dict[str, Any]:
    (body,) = cli.sent(CHAT)
    return dict(body)


def test_words_of_the_prompt_are_one_question(model: Cli) -> None:
    ended = model("run", "m", "Why", "is it?")
    assert (ended.status, ended.stdout, ended.stderr) == (0, "Hi there\n", "")
    assert sent(model) == {
        "model": "m",
        "messages": [{"role": "user", "content": "Why is it?"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_options_are_passed_on_when_they_were_given(model: Cli) -> None:
    model(
        "run", "m", "--system", "Be brief.", "--temperature", "0", "--top-p", "0.5", "--top-k", "7",
        "--min-p", "0.1", "--seed", "3", "--stop", "a", "--stop", "b", "--max-tokens", "9",
        "--keep-alive", "-1", "hi",
    )  # fmt: skip
    body = sent(model)
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    wanted = {"temperature": 0.0, "top_p": 0.5, "top_k": 7, "min_p": 0.1, "seed": 3, "stop": ["a", "b"]}
    assert {name: body[name] for name in wanted} == wanted
    assert (body["max_tokens"], body["keep_alive"]) == (9, "-1")


def test_piped_input_is_a_question(model: Cli) -> None:
    assert model("run", "m", stdin="from a pipe\n").stdout == "Hi there\n"
    assert sent(model)["messages"][0]["content"] == "from a pipe\n"


def test_piped_input_follows_the_prompt(model: Cli) -> None:
    model("run", "m", "Summarise:", stdin="a text")
    assert sent(model)["messages"][0]["content"] == "Summarise:\n\na text"


def test_empty_piped_input_adds_nothing(model: Cli) -> None:
    model("run", "m", "hi", stdin=" \n")
    assert sent(model)["messages"][0]["content"] == "hi"


def test_piped_input_that_is_no_text_is_refused(model: Cli) -> None:
    ended = model("run", "m", stdin=b"ab\xff")
    assert ended.status == 2
    assert "not UTF-8 text: byte 2" in ended.stderr
    assert model.sent(CHAT) == []


def test_a_prompt_may_begin_with_a_dash_after_two(model: Cli) -> None:
    model("run", "m", "--", "--help", "me")
    assert sent(model)["messages"][0]["content"] == "--help me"


def test_arguments_that_are_no_text_are_left_to_the_daemon(model: Cli) -> None:
    assert model("run", "m", os.fsdecode(b"\xff")).status == 0
    assert rb"\udcff" in model.server.requests[-1].body


def test_a_model_that_is_not_there_exits_with_4_before_piped_input_is_taken(cli: Cli) -> None:
    cli.routes["GET /v1/models/m"] = lambda _: refusal(
        404, "model_not_found", "model 'm' is not in the store"
    )
    ended = cli("run", "m", "--no-pull", stdin=b"\xff")
    assert ended.status == 4
    assert ended.stdout == ""
    error, hint = ended.stderr.splitlines()
    assert error == "error: model 'm' is not in the store"
    assert "runner ctl ls" in hint
    assert "runner ctl pull" in hint
    assert cli.server.paths == ["GET /v1/models/m"]


def test_an_answer_ends_with_one_newline(model: Cli) -> None:
    model.routes[CHAT] = lambda _: stream("text\n")
    assert model("run", "m", "hi").stdout == "text\n"
    model.routes[CHAT] = lambda _: stream()
    assert model("run", "m", "hi").stdout == ""


def thinking(*thoughts: str) -> list[bytes]:
    return [event(delta(thought, kind="reasoning_content")) for thought in thoughts]


def test_what_the_model_thinks_is_printed_before_the_answer(model: Cli) -> None:
    _, *rest = stream("Hi", " there")
    model.routes[CHAT] = lambda _: [STREAM_HEAD, *thinking("Well,", " \x07hm.\n"), *rest]
    ended = model("run", "m", "hi")
    assert (ended.stdout, ended.stderr) == ("Thinking:\nWell, \\x07hm.\n\n\n--\n\nHi there\n", "")


def test_thinking_without_an_answer_ends_with_one_newline(model: Cli) -> None:
    _, *rest = stream(finish_reason="length")
    model.routes[CHAT] = lambda _: [STREAM_HEAD, *thinking("Well"), *rest]
    assert model("run", "m", "hi", "--max-tokens", "3").stdout == "Thinking:\nWell\n"


def test_a_conversation_does_not_send_what_the_model_thought(model: Cli) -> None:
    _, *rest = stream("Hi")
    model.routes[CHAT] = lambda _: [STREAM_HEAD, *thinking("Well"), *rest]
    conversation = Conversation(client=Client(model.server.target), model="m", model_id="m")
    assert conversation.ask("one") == "Hi"
    assert conversation.ask("two") == "Hi"
    *_, last = model.sent(CHAT)
    assert [turn["content"] for turn in last["messages"]] == ["one", "Hi", "two"]


def test_the_answer_streams_into_a_pipe(model: Cli) -> None:
    was_read = threading.Event()

    def respond(request: Request) -> Iterable[bytes]:
        yield STREAM_HEAD + event(delta("first"))
        assert was_read.wait(20)
        yield event(delta(" second")) + event("[DONE]") + STREAM_END

    model.routes[CHAT] = respond
    with subprocess.Popen(
        [sys.executable, "-m", "runner", "run", "m", "hi"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.read(5) == "first"
        was_read.set()
        assert process.stdout.read() == " second\n"
    assert process.returncode == 0


def test_half_an_answer_is_printed_and_is_an_error(model: Cli) -> None:
    model.routes[CHAT] = lambda _: [STREAM_HEAD, event(delta("half")), STREAM_END]
    ended = model("run", "m", "hi")
    assert ended.status == 1
    assert ended.stdout == "half\n"
    assert ended.stderr.startswith("error: the answer broke off")


def test_a_worker_that_dies_in_mid_answer_is_told_with_a_hint(model: Cli) -> None:
    failed = {"error": {"message": "the worker of m ended", "type": "server_error", "code": "worker_crashed"}}
    model.routes[CHAT] = lambda _: [STREAM_HEAD, event(delta("half")), event(failed), STREAM_END]
    ended = model("run", "m", "hi")
    assert (ended.status, ended.stdout) == (1, "half\n")
    assert ended.stderr.splitlines() == [
        "error: the worker of m ended",
        "hint: `runner ctl status` names the daemon's log, which tells more",
    ]


def test_faults_of_parameters_are_told_as_the_daemon_tells_them(model: Cli) -> None:
    model.routes[CHAT] = lambda _: refusal(400, "invalid_parameter", "temperature: must be in 0..2; seed: no")
    ended = model("run", "m", "hi", "--temperature", "9")
    assert ended.status == 1
    assert ended.stderr == "error: temperature: must be in 0..2; seed: no\n"


def test_an_answer_that_is_cut_off_by_the_context_is_told(model: Cli) -> None:
    model.routes[CHAT] = lambda _: stream("and", finish_reason="length")
    assert model("run", "m", "hi").stderr == "(cut off: the context is full)\n"
    assert model("run", "m", "hi", "--max-tokens", "1").stderr == ""


def test_K06_model_output_reaches_the_terminal_harmlessly(model: Cli) -> None:
    model.routes[CHAT] = lambda _: stream("a\x1b]52;c;", "cm0=\x07b\x9b2J", "\u202ec\n\td\r\n")
    assert model("run", "m", "hi").stdout == "a\\x1b]52;c;cm0=\\x07b\\x9b2J\\u202ec\n\td\n"


def test_verbose_prints_counts_and_rates(model: Cli) -> None:
    ended = model("run", "m", "-v", "hi")
    assert ended.stdout == "Hi there\n"
    assert re.fullmatch(
        r"12 prompt \+ 40 answer tokens · prompt 900\.0 tokens/s · answer 85\.1 tokens/s"
        r" · first after \d+\.\d\d s · \d+\.\d\d s in all\n",
        ended.stderr,
    )


def test_verbose_leaves_out_what_is_not_known(model: Cli) -> None:
    model.routes[CHAT] = lambda _: stream()
    assert re.fullmatch(
        r"0 prompt \+ 0 answer tokens · \d+\.\d\d s in all\n", model("run", "m", "-v", "hi").stderr
    )


def test_verbose_tells_what_was_cached(model: Cli) -> None:
    usage = {**LAST["usage"], "prompt_tokens_details": {"cached_tokens": 10}}
    model.routes[CHAT] = lambda _: stream("x", usage=usage)
    assert model("run", "m", "-v", "hi").stderr.startswith("12 prompt (10 cached) + 40 answer tokens · ")
