"""Several answers, logprobs and the echoed prompt in OpenAI's shapes."""

from __future__ import annotations

import json
from typing import Any

import attrs
import orjson
import pytest

from runner.api.collecting import Choice, Completed
from runner.api.openai import convert, replies
from runner.api.openai.logprobs import mean
from runner.api.openai.replies import CHAT, COMPLETION, ReplyHead, StreamEncoder, Wanted
from runner.api.openai.schema import parse_chat, parse_completion
from runner.domain.events import (
    ChoiceEnded,
    Finished,
    FinishReason,
    GenerationEvent,
    PromptText,
    RankedToken,
    TextDelta,
    Timings,
    TokenLogprob,
    Usage,
)
from runner.domain.generation import GenerationRequest, TextPrompt, TokenPrompt

HEAD = ReplyHead(reply_id="cmpl-1", created_s=5, model="ai/smollm2")
FINISHED = Finished(
    reason=FinishReason.STOP,
    usage=Usage(prompt_tokens=3, completion_tokens=4),
    timings=Timings(queued_s=0.0, prefill_s=0.1, decode_s=0.2),
)
HI = TokenLogprob(5, b"Hi", -0.5, (RankedToken(5, b"Hi", -0.5), RankedToken(6, b"Ho", -1.0)))
PART = TokenLogprob(7, b"\xc3", -1.5)
FIRST = TokenLogprob(1, b"<s>", None)
WHY = TokenLogprob(8, b"Why", -2.0)


def completed(*choices: Choice, prompt: tuple[TokenLogprob, ...] = (), prompt_text: str = "") -> Completed:
    echoing = tuple(attrs.evolve(one, prompt_text=prompt_text, prompt_logprobs=prompt) for one in choices)
    return Completed(choices=echoing, finished=FINISHED, fingerprint="fp_1")


def choice(text: str, *logprobs: TokenLogprob) -> Choice:
    return Choice(text=text, reason=FinishReason.STOP, logprobs=logprobs)


def choices_of(shape: replies.Shape, answer: Completed, **wanted: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(replies.reply(shape, HEAD, answer, Wanted(**wanted)))["choices"]
    return found


def test_every_answer_has_its_place() -> None:
    found = choices_of(CHAT, completed(choice("a"), choice("b")), n=2)
    assert [(one["index"], one["message"]["content"]) for one in found] == [(0, "a"), (1, "b")]


def test_reasoning_stands_beside_the_answer_where_there_is_some() -> None:
    thought = Choice(text="a", reason=FinishReason.STOP, reasoning="hm", logprobs=(HI,))
    first, second = choices_of(CHAT, completed(thought, choice("b")), n=2, has_logprobs=True)
    assert first["message"] == {"role": "assistant", "reasoning_content": "hm", "content": "a"}
    assert [one["token"] for one in first["logprobs"]["content"]] == ["Hi"]
    assert second["message"] == {"role": "assistant", "content": "b"}


def test_the_best_are_those_whose_tokens_were_likeliest() -> None:
    answer = completed(choice("a", WHY), choice("b", HI), choice("c", HI, WHY, WHY), choice("d", PART, HI))
    found = choices_of(COMPLETION, answer, n=2)
    assert [(one["index"], one["text"], one["logprobs"]) for one in found] == [(0, "b", None), (1, "d", None)]
    assert mean(()) == 0.0


def test_logprobs_of_a_chat() -> None:
    [found] = choices_of(CHAT, completed(choice("Hi", HI, PART)), has_logprobs=True)
    assert found["logprobs"] == {
        "content": [
            {
                "token": "Hi",
                "logprob": -0.5,
                "bytes": [72, 105],
                "top_logprobs": [
                    {"token": "Hi", "logprob": -0.5, "bytes": [72, 105]},
                    {"token": "Ho", "logprob": -1.0, "bytes": [72, 111]},
                ],
            },
            {"token": "\N{REPLACEMENT CHARACTER}", "logprob": -1.5, "bytes": [0xC3], "top_logprobs": []},
        ],
        "refusal": None,
    }


def test_logprobs_of_a_completion_count_offsets() -> None:
    [found] = choices_of(COMPLETION, completed(choice("HiHi", HI, HI)), has_logprobs=True)
    assert found["logprobs"] == {
        "tokens": ["Hi", "Hi"],
        "token_logprobs": [-0.5, -0.5],
        "top_logprobs": [{"Hi": -0.5, "Ho": -1.0}] * 2,
        "text_offset": [0, 2],
    }


def test_an_echoed_prompt_stands_before_every_answer() -> None:
    answer = completed(choice("Hi", HI), choice("Ho", HI), prompt=(FIRST, WHY), prompt_text="<s>Why")
    known = choices_of(COMPLETION, answer, n=2, echoed=("Why",), has_logprobs=True)
    assert [one["text"] for one in known] == ["WhyHi", "WhyHo"]
    assert known[0]["logprobs"]["tokens"] == ["<s>", "Why", "Hi"]
    assert known[0]["logprobs"]["token_logprobs"] == [None, -2.0, -0.5]
    assert known[0]["logprobs"]["top_logprobs"][0] is None
    assert known[0]["logprobs"]["text_offset"] == [0, 0, 3]
    unknown = choices_of(COMPLETION, answer, n=2, echoed=("",), has_logprobs=True)
    assert [one["text"] for one in unknown] == ["<s>WhyHi", "<s>WhyHo"]
    assert unknown[0]["logprobs"]["text_offset"] == [0, 3, 6]


def chunks(data: bytes) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in data.decode().split("\n") if line]
    return [json.loads(line) if line[0] == "{" else line for line in lines]


def told(data: bytes, is_chat: bool) -> list[tuple[int, Any, Any]]:
    """Index, content and finish reason of each chunk that has a choice."""
    found = []
    for chunk in chunks(data):
        for one in chunk["choices"] if isinstance(chunk, dict) else ():
            content = one["delta"].get("content") if is_chat else one["text"]
            found.append((one["index"], content, one["finish_reason"]))
    return found


def test_reasoning_streams_each_in_its_place_and_without_logprobs() -> None:
    encoder = StreamEncoder(CHAT, HEAD, has_usage_chunk=False, wanted=Wanted(n=2, has_logprobs=True))
    encoder.opening("fp_1")
    thoughts = [TextDelta("hm", 1, index, is_reasoning=True) for index in (0, 1)]
    found = [chunk["choices"][0] for chunk in chunks(encoder.encode(thoughts))]
    assert [(one["index"], one["delta"], one["logprobs"]) for one in found] == [
        (0, {"reasoning_content": "hm"}, None),
        (1, {"reasoning_content": "hm"}, None),
    ]


def test_answers_stream_side_by_side_and_end_each_by_itself() -> None:
    encoder = StreamEncoder(CHAT, HEAD, has_usage_chunk=False, wanted=Wanted(n=2))
    assert told(encoder.opening("fp_1"), True) == [(0, "", None), (1, "", None)]
    events: list[GenerationEvent] = [
        TextDelta("a", 1),
        TextDelta("b", 1, 1),
        ChoiceEnded(1, FinishReason.LENGTH),
        TextDelta("c", 1),
        FINISHED,
    ]
    data = encoder.encode(events)
    assert told(data, True) == [
        (0, "a", None),
        (1, "b", None),
        (1, None, "length"),
        (0, "c", None),
        (0, None, "stop"),
    ]
    assert data.endswith(b"data: [DONE]\n\n")


def test_the_last_answer_to_end_may_be_any() -> None:
    encoder = StreamEncoder(COMPLETION, HEAD, has_usage_chunk=True, wanted=Wanted(n=2))
    encoder.opening("fp_1")
    last = Finished(reason=FinishReason.STOP, usage=FINISHED.usage, timings=FINISHED.timings, choice_index=1)
    assert told(encoder.encode([ChoiceEnded(0, FinishReason.STOP), last]), False) == [
        (0, "", "stop"),
        (1, "", "stop"),
    ]


@pytest.mark.parametrize("shape", [CHAT, COMPLETION])
def test_streamed_logprobs_come_with_their_text(shape: replies.Shape) -> None:
    encoder = StreamEncoder(shape, HEAD, has_usage_chunk=False, wanted=Wanted(has_logprobs=True))
    encoder.opening("fp_1")
    data = encoder.encode([TextDelta("Hi", 1, 0, (HI,)), TextDelta("Hi", 1, 0, (HI,))])
    first, second = (chunk["choices"][0]["logprobs"] for chunk in chunks(data))
    if shape.is_chat:
        assert [one["token"] for one in first["content"]] == ["Hi"]
    else:
        assert (first["text_offset"], second["text_offset"]) == ([0], [2])


def test_logprobs_that_only_choose_the_best_are_not_streamed() -> None:
    encoder = StreamEncoder(CHAT, HEAD, has_usage_chunk=False)
    encoder.opening("fp_1")
    [chunk] = chunks(encoder.encode([TextDelta("Hi", 1, 0, (HI,))]))
    assert chunk["choices"][0]["logprobs"] is None


def test_a_known_prompt_opens_the_stream_and_its_logprobs_follow() -> None:
    wanted = Wanted(n=2, echoed=("Why",), has_logprobs=True)
    encoder = StreamEncoder(COMPLETION, HEAD, has_usage_chunk=False, wanted=wanted)
    assert told(encoder.opening("fp_1"), False) == [(0, "Why", None), (1, "Why", None)]
    data = encoder.encode([PromptText("<s>Why", (FIRST, WHY)), TextDelta("Hi", 1, 1, (HI,))])
    assert told(data, False) == [(0, "", None), (1, "", None), (1, "Hi", None)]
    assert [chunk["choices"][0]["logprobs"]["text_offset"] for chunk in chunks(data)] == [[0, 0], [0, 0], [3]]


def test_an_unknown_prompt_streams_as_the_worker_tells_it() -> None:
    encoder = StreamEncoder(COMPLETION, HEAD, has_usage_chunk=False, wanted=Wanted(echoed=("",)))
    assert encoder.opening("fp_1") == b""
    data = encoder.encode([PromptText("Wh"), PromptText("y"), TextDelta("Hi", 1)])
    assert told(data, False) == [(0, "Wh", None), (0, "y", None), (0, "Hi", None)]


# what the worker is asked


def asked(**fields: Any) -> GenerationRequest:
    return convert.generation_request(
        parse_completion(orjson.dumps({"model": "a", "prompt": "Why?", **fields})), "r1"
    )


def test_the_worker_is_asked_for_all_of_whom_the_best_are_shown() -> None:
    request = asked(n=2, best_of=5)
    assert (request.n, request.logprobs) == (5, 0)
    assert asked(n=2, best_of=2).logprobs is None
    assert asked(best_of=3, logprobs=4).logprobs == 4


def test_the_worker_echoes_only_what_is_not_known_here() -> None:
    assert not asked(echo=True).echo
    assert asked(echo=True, logprobs=0).echo
    assert asked(echo=True, prompt=[1, 2]).echo
    assert not asked(prompt=[1, 2], logprobs=0).echo


def test_a_chat_asks_for_as_many_likeliest_tokens_as_it_says() -> None:
    def logprobs(**fields: Any) -> int | None:
        body = {"model": "a", "messages": [{"role": "user", "content": "Why?"}], **fields}
        return convert.generation_request(parse_chat(orjson.dumps(body)), "r1").logprobs

    assert logprobs() is logprobs(logprobs=False) is logprobs(top_logprobs=0) is None
    assert logprobs(logprobs=True) == 0
    assert logprobs(logprobs=True, top_logprobs=7) == 7


def test_what_is_shown_follows_the_request() -> None:
    def wanted(**fields: Any) -> Wanted:
        return convert.wanted(parse_completion(orjson.dumps({"model": "a", "prompt": "Why?", **fields})))

    assert wanted() == Wanted()
    assert wanted(n=3, logprobs=0, echo=True) == Wanted(n=3, has_logprobs=True, echoed=("Why?",))
    assert wanted(prompt=[5], echo=True) == Wanted(echoed=("",))
    assert wanted(best_of=3) == Wanted()


# several prompts


def test_of_each_prompts_answers_the_best_are_shown_in_order_of_prompts() -> None:
    likely, unlikely = TokenLogprob(5, b"x", -0.1), TokenLogprob(5, b"x", -3.0)
    answer = completed(
        choice("a0", unlikely), choice("a1", likely), choice("b0", likely), choice("b1", unlikely)
    )
    shown = choices_of(COMPLETION, answer, n=1, n_prompts=2)
    assert [(one["index"], one["text"]) for one in shown] == [(0, "a1"), (1, "b0")]
    shown = choices_of(COMPLETION, answer, n=2, n_prompts=2)
    assert [one["text"] for one in shown] == ["a0", "a1", "b0", "b1"]


def test_each_answer_stands_behind_its_own_prompt() -> None:
    answer = completed(choice("0"), choice("1"), choice("2"), choice("3"), prompt_text="[told]")
    shown = choices_of(COMPLETION, answer, n=2, n_prompts=2, echoed=("Why", ""))
    assert [one["text"] for one in shown] == ["Why0", "Why1", "[told]2", "[told]3"]


def test_known_and_unknown_prompts_stream_before_their_own_answers() -> None:
    wanted = Wanted(n=2, n_prompts=2, echoed=("Why", ""), has_logprobs=True)
    encoder = StreamEncoder(COMPLETION, HEAD, has_usage_chunk=False, wanted=wanted)
    assert told(encoder.opening("fp_1"), False) == [(0, "Why", None), (1, "Why", None)]
    data = encoder.encode([PromptText("Why", (WHY,)), PromptText("Hi", (HI,), 1), TextDelta("x", 1, 3)])
    assert told(data, False) == [
        (0, "", None),
        (1, "", None),
        (2, "Hi", None),
        (3, "Hi", None),
        (3, "x", None),
    ]


def test_a_request_with_several_prompts_becomes_one_with_more_beside_it() -> None:
    request = parse_completion(orjson.dumps({"model": "a", "prompt": ["x", [5], "y"], "echo": True}))
    assert convert.generation_request(request, "r1").prompt == TextPrompt("x")
    assert convert.generation_request(request, "r1").echo
    assert convert.more_prompts(request) == (TokenPrompt((5,)), TextPrompt("y"))
    assert convert.wanted(request) == Wanted(n_prompts=3, echoed=("x", "", "y"))
    chat = parse_chat(orjson.dumps({"model": "a", "messages": [{"role": "user", "content": "x"}]}))
    assert convert.more_prompts(chat) == ()
