"""Bodies of the OpenAI endpoints: what passes, what is refused, and that every fault is named at once."""

from __future__ import annotations

import json
import math
import timeit
from typing import Any

import orjson
import pytest

from runner.api.openai.schema import ChatRequest, CompletionRequest, parse_chat, parse_completion
from runner.domain.generation import ChatMessage, TextPrompt, TokenPrompt
from runner.errors import BadInput, InvalidParameter, UnsupportedParameter

MODEL = "ai/smollm2"
TURN = {"role": "user", "content": "Why?"}


def chat(**fields: Any) -> ChatRequest:
    return parse_chat(orjson.dumps({"model": MODEL, "messages": [TURN], **fields}))


def completion(**fields: Any) -> CompletionRequest:
    return parse_completion(orjson.dumps({"model": MODEL, "prompt": "Why?", **fields}))


def refusal(parse: Any, **fields: Any) -> tuple[type[BadInput], list[str]]:
    with pytest.raises((InvalidParameter, UnsupportedParameter)) as caught:
        parse(**fields)
    return type(caught.value), [fault.path for fault in caught.value.faults]


BOTH = pytest.mark.parametrize("parse", [chat, completion], ids=["chat", "completion"])


def test_a_chat_request_with_everything_becomes_values() -> None:
    request = chat(
        messages=[
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Why"}, {"type": "text", "text": "so?"}]},
            {"role": "assistant", "content": "Because.", "tool_calls": [], "refusal": None},
            {"role": "tool", "content": "4", "tool_call_id": "c1"},
            {"role": "user", "content": "", "name": "ann"},
        ],
        temperature=0,
        top_p=0.9,
        top_k=40,
        min_p=0.05,
        seed=-5,
        max_tokens=10,
        max_completion_tokens=12,
        stop="\n",
        stream=True,
        stream_options={"include_usage": True, "include_obfuscation": False},
        ignore_eos=True,
        keep_alive="1h30m",
        chat_template_kwargs={"enable_thinking": False},
        user="u",
        metadata={"a": "b"},
        store=True,
        service_tier="auto",
        parallel_tool_calls=True,
        cache_prompt=True,
        nobody_knows_this={"deep": [1]},
    )
    assert request.model.text == MODEL
    assert request.messages == (
        ChatMessage(role="system", content="Be brief."),
        ChatMessage(role="user", content="Why\nso?"),
        ChatMessage(role="assistant", content="Because."),
        ChatMessage(role="tool", content="4"),
        ChatMessage(role="user", content="", name="ann"),
    )
    assert (request.temperature, request.seed, request.stop) == (0.0, -5, "\n")
    assert request.keep_alive == 5400
    assert request.chat_template_kwargs == {"enable_thinking": False}


@BOTH
def test_a_null_in_an_optional_field_counts_as_absent(parse: Any) -> None:
    optional = (
        "temperature top_p top_k min_p seed max_tokens stop stream stream_options ignore_eos keep_alive"
    )
    harmless = "n logprobs logit_bias tools response_format frequency_penalty best_of suffix grammar"
    request = parse(**dict.fromkeys([*optional.split(), *harmless.split()]))
    assert request == parse()


@BOTH
@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("temperature", [0, 0.0, 1.5, 2], [-0.01, 2.01, "1", True]),
        ("top_p", [0, 1], [-0.01, 1.01]),
        ("top_k", [0, 1, 1_000_000], [-1, 1_000_001, 1.0]),
        ("min_p", [0, 1], [-0.01, 1.01]),
        ("seed", [0, 2**63 - 1, 1 - 2**63], [2**63, -(2**63), 0.5]),
        ("max_tokens", [1, 2**63 - 1], [0, -1, 2**63, "12", 12.0, True]),
        ("stop", ["x", "x" * 256, [], ["x"] * 16], ["", "x" * 257, "ä" * 129, ["x"] * 17, [""], [None], 3]),
        ("stream", [True, False], ["true", 1]),
        ("ignore_eos", [True], ["yes"]),
        ("stream_options", [{}, {"include_usage": None}], [True, {"include_usage": 1}]),
        ("keep_alive", [0, -1, "0", "-1", 30.5], ["x", [], False]),
        ("model", ["ai/a:b", "0123456789ab", "sha256:" + "0" * 64], ["", 5, None, "a" * 256]),
        ("typical_p", [0, 1], [-0.01, 1.01]),
        ("top_n_sigma", [-1, 0, 10], [-1.01, 10.01]),
        ("dynatemp_range", [0, 2], [-0.01, 2.01]),
        ("dynatemp_exponent", [0.1, 10], [0.09, 10.01]),
        ("repeat_penalty", [0.1, 1, 2], [0.09, 2.01]),
        ("repetition_penalty", [0.1, 1, 2], [0.09, 2.01]),
        ("repeat_last_n", [-1, 0, 2**24], [-2, 2**24 + 1, 64.0]),
        ("frequency_penalty", [-2, 0, 2], [-2.01, 2.01]),
        ("presence_penalty", [-2, 0.0, 2], [-2.01, 2.01]),
        ("dry_multiplier", [0, 10], [-0.01, 10.01]),
        ("dry_base", [1, 10], [0.99, 10.01]),
        ("dry_allowed_length", [1, 1024], [0, 1025]),
        ("dry_penalty_last_n", [-1, 2**24], [-2, 2**24 + 1]),
        ("dry_sequence_breakers", [[], ["x" * 40] * 16], ["\n", [""], ["x" * 41], ["x"] * 17, [1]]),
        ("xtc_probability", [0, 1], [-0.01, 1.01]),
        ("xtc_threshold", [0, 1], [-0.01, 1.01]),
        ("mirostat", [0, 1, 2], [-1, 3, True, 1.0]),
        ("mirostat_tau", [0, 20], [-0.01, 20.01]),
        ("mirostat_eta", [0, 1], [-0.01, 1.01]),
        (
            "logit_bias",
            [{}, {"0": -100, "49151": 100.0}, {str(index): 1 for index in range(1024)}, [], [[5, -1.5]]],
            [
                {str(index): 1 for index in range(1025)},
                {"5": -100.01},
                {"5": 100.01},
                {"5": "1"},
                {"5": True},
                {"-1": 1},
                {"five": 1},
                {"2147483648": 1},
                [5],
                [[5]],
                [["five", 1]],
                [[5, 101]],
                "5",
            ],
        ),
        (
            "samplers",
            [[], ["temperature"], ["typ_p"], ["typical_p", "top_k"]],
            [["top_q"], ["top_k", "top_k"], ["typ_p", "typical_p"], [4], "kfypmt"],
        ),
    ],
)
def test_N12_ranges_and_types_are_checked_at_below_and_above(
    parse: Any, field: str, good: list[object], bad: list[object]
) -> None:
    for value in good:
        parse(**{field: value})
    for value in bad:
        kind, paths = refusal(parse, **{field: value})
        assert kind is InvalidParameter, value
        assert {path.partition("[")[0].partition(".")[0] for path in paths} == {field}


def test_N12_the_number_of_messages_is_limited() -> None:
    assert len(chat(messages=[TURN] * 4096).messages) == 4096
    for count in (0, 4097):
        assert refusal(chat, messages=[TURN] * count) == (InvalidParameter, ["messages"])


def test_N12_the_numbers_of_functions_and_of_likeliest_tokens_are_limited() -> None:
    for name in ("tools", "functions"):
        assert refusal(chat, **{name: [{}] * 256}) == (UnsupportedParameter, [name])
        assert refusal(chat, **{name: [{}] * 257}) == (InvalidParameter, [name])
    assert chat(logprobs=True, top_logprobs=20).top_logprobs == 20
    assert completion(logprobs=20).logprobs == 20
    for value in (21, -1):
        assert refusal(chat, logprobs=True, top_logprobs=value) == (InvalidParameter, ["top_logprobs"])
        assert refusal(completion, logprobs=value) == (InvalidParameter, ["logprobs"])


@BOTH
def test_N12_the_number_of_answers_is_limited(parse: Any) -> None:
    for value in (1, 8):
        assert parse(n=value).n == value
    for value in (0, 9, 1.0, True):
        assert refusal(parse, n=value) == (InvalidParameter, ["n"])


def test_N12_the_best_of_some_is_of_as_many_as_are_shown_and_no_stream() -> None:
    assert completion(best_of=8, n=8, stream=True).best_of == 8
    assert completion(best_of=8).best_of == 8
    for fields in ({"best_of": 9}, {"best_of": 2, "n": 3}, {"best_of": 2, "stream": True}):
        assert refusal(completion, **fields) == (InvalidParameter, ["best_of"])


def test_likeliest_tokens_come_with_logprobs() -> None:
    assert chat(top_logprobs=0).top_logprobs == 0
    for fields in ({}, {"logprobs": False}):
        assert refusal(chat, top_logprobs=1, **fields) == (InvalidParameter, ["top_logprobs"])


@pytest.mark.parametrize(
    ("field", "changes_nothing", "changes"),
    [
        ("tools", [[]], [[{"type": "function"}]]),
        ("tool_choice", ["none", "auto"], ["required", {"type": "function"}]),
        ("functions", [[]], [[{}]]),
        ("function_call", ["none", "auto"], [{"name": "f"}]),
        ("modalities", [["text"], []], [["text", "audio"]]),
        ("audio", [None], [{"voice": "alloy"}]),
        ("prediction", [None], [{"type": "content", "content": "x"}]),
        ("verbosity", ["medium"], ["low"]),
        ("web_search_options", [None], [{}]),
        ("n_predict", [-1], [5]),
        ("min_tokens", [0], [1]),
        ("stop_token_ids", [[]], [[5]]),
        ("lora", [[]], [[{"id": 0}]]),
        ("chat_template", [None], ["{{ x }}"]),
        ("add_generation_prompt", [True], [False]),
        ("continue_final_message", [False], [True]),
    ],
)
def test_known_fields_are_refused_only_when_they_would_change_the_result(
    field: str, changes_nothing: list[object], changes: list[object]
) -> None:
    for value in [None, *changes_nothing]:
        assert chat(**{field: value}) == chat()
    for value in changes:
        assert refusal(chat, **{field: value}) == (UnsupportedParameter, [field])


def test_how_much_and_where_a_model_reasons() -> None:
    for effort in ("none", "low", "medium", "high"):
        assert chat(reasoning_effort=effort).reasoning_effort == effort
    for effort in ("", "minimal", "xhigh"):
        assert refusal(chat, reasoning_effort=effort) == (UnsupportedParameter, ["reasoning_effort"])
    assert refusal(chat, reasoning_effort=1) == (InvalidParameter, ["reasoning_effort"])
    for kind in ("none", "auto", "deepseek"):
        assert chat(reasoning_format=kind).reasoning_format == kind
    for stranger in ("", "deepseek-legacy", 1, ["none"]):
        assert refusal(chat, reasoning_format=stranger) == (InvalidParameter, ["reasoning_format"])


@pytest.mark.parametrize(
    ("field", "changes_nothing", "changes"),
    [
        ("suffix", [""], ["end"]),
    ],
)
def test_known_fields_of_text_completions(
    field: str, changes_nothing: list[object], changes: list[object]
) -> None:
    for value in [None, *changes_nothing]:
        assert completion(**{field: value}) == completion()
    for value in changes:
        assert refusal(completion, **{field: value}) == (UnsupportedParameter, [field])


@BOTH
def test_one_thing_has_one_name(parse: Any) -> None:
    assert refusal(parse, repeat_penalty=1.1, repetition_penalty=1.1) == (
        InvalidParameter,
        ["repetition_penalty"],
    )


@pytest.mark.parametrize(
    ("message", "paths"),
    [
        ({}, ["role", "content"]),
        ({"role": "user"}, ["content"]),
        ({"role": "user", "content": None}, ["content"]),
        ({"role": "assistant", "content": None}, ["content"]),
        ({"role": "user", "content": 5}, ["content"]),
        ({"role": "User", "content": ""}, ["role"]),
        ({"role": "function", "content": ""}, ["role"]),
        ({"role": 1, "content": ""}, ["role"]),
        ({"role": "user", "content": "", "name": 5}, ["name"]),
        ({"role": "user", "content": ["x", {"type": "text"}]}, ["content[0]", "content[1]"]),
        ({"role": "user", "content": [{"type": "image"}]}, ["content[0]"]),
    ],
)
def test_messages_are_checked_field_by_field(message: dict[str, Any], paths: list[str]) -> None:
    expected = [f"messages[1].{path}" for path in paths]
    assert refusal(chat, messages=[TURN, message]) == (InvalidParameter, expected)


def test_a_message_that_is_no_object_is_named() -> None:
    assert refusal(chat, messages=[TURN, "x", [1]]) == (InvalidParameter, ["messages[1]", "messages[2]"])


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "file", "video_url", "refusal"])
def test_N16_content_that_is_no_text_is_refused_by_its_path(kind: str) -> None:
    parts = [{"type": "text", "text": "x"}, {"type": kind, kind: {"url": "file:///etc/passwd"}}]
    messages = [TURN, {"role": "user", "content": parts}]
    assert refusal(chat, messages=messages) == (UnsupportedParameter, ["messages[1].content[1]"])


@pytest.mark.parametrize("content", [None, ""])
def test_tool_calls_of_an_assistant_are_refused_by_their_path(content: str | None) -> None:
    turn = {"role": "assistant", "content": content, "tool_calls": [{"id": "c"}]}
    assert refusal(chat, messages=[TURN, turn]) == (UnsupportedParameter, ["messages[1].tool_calls"])
    turn = {"role": "assistant", "content": content, "function_call": {"name": "f"}}
    assert refusal(chat, messages=[TURN, turn]) == (UnsupportedParameter, ["messages[1].function_call"])


def test_G08_template_options_are_the_listed_names_with_their_types() -> None:
    for good in ({}, {"thinking": True, "date_string": "26 Jul 2024"}, {"date_string": "x" * 1024}):
        assert chat(chat_template_kwargs=good).chat_template_kwargs == good
    path = "chat_template_kwargs"
    assert refusal(chat, chat_template_kwargs={"messages": []}) == (
        UnsupportedParameter,
        [f"{path}.messages"],
    )
    for bad in ({"thinking": "yes"}, {"thinking": 1}, {"date_string": True}, {"date_string": "x" * 1025}):
        assert refusal(chat, chat_template_kwargs=bad) == (InvalidParameter, [f"{path}.{next(iter(bad))}"])


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("Why?", TextPrompt("Why?")),
        ("", TextPrompt("")),
        (["Why?"], TextPrompt("Why?")),
        ([1, 2], TokenPrompt((1, 2))),
        ([[1, 2]], TokenPrompt((1, 2))),
        ([0, 2**31 - 1], TokenPrompt((0, 2**31 - 1))),
    ],
)
def test_one_prompt_comes_as_text_or_as_token_ids(prompt: object, expected: object) -> None:
    assert completion(prompt=prompt).prompt == (expected,)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        (["a", "b"], (TextPrompt("a"), TextPrompt("b"))),
        ([[1], [2, 3]], (TokenPrompt((1,)), TokenPrompt((2, 3)))),
        (["", [1]], (TextPrompt(""), TokenPrompt((1,)))),
    ],
)
def test_several_prompts_come_in_one_list(prompt: object, expected: object) -> None:
    assert completion(prompt=prompt).prompt == expected


@pytest.mark.parametrize(
    ("fields", "is_taken"),
    [
        ({"prompt": ["a"] * 64}, True),
        ({"prompt": ["a"] * 65}, False),
        ({"prompt": ["a"] * 8, "n": 8}, True),
        ({"prompt": ["a"] * 9, "n": 8}, False),
        ({"prompt": ["a"] * 21, "best_of": 3}, True),
        ({"prompt": ["a"] * 22, "best_of": 3}, False),
    ],
)
def test_N12_prompts_and_their_answers_are_bounded_together(fields: dict[str, Any], is_taken: bool) -> None:
    if is_taken:
        assert len(completion(**fields).prompt) == len(fields["prompt"])
    else:
        assert refusal(completion, **fields) == (InvalidParameter, ["prompt"])


@pytest.mark.parametrize("prompt", [None, 5, [], {}, [-1], [2**31], [1.0], [True], [1, "a"], [None]])
def test_prompts_of_other_kinds_are_faults(prompt: object) -> None:
    assert refusal(completion, prompt=prompt) == (InvalidParameter, ["prompt"])


@pytest.mark.parametrize("prompt", [[[]], [["a"]], [[1, None]], [[-1]], [[2**31]]])
def test_a_faulty_prompt_within_a_list_is_named(prompt: list[object]) -> None:
    assert refusal(completion, prompt=prompt) == (InvalidParameter, ["prompt[0]"])
    paths = ["prompt[1]", "prompt[3]"]
    assert refusal(completion, prompt=["a", *prompt, [5], *prompt]) == (InvalidParameter, paths)


def test_N12_every_faulty_field_is_named_in_one_answer() -> None:
    kind, paths = refusal(
        chat, model="..", messages=[{"role": "x"}], temperature=3, stop=[""], n=9, tools=1, audio={}
    )
    assert kind is InvalidParameter
    assert paths == [
        "model",
        "temperature",
        "stop[0]",
        "n",
        "messages[0].role",
        "messages[0].content",
        "tools",
        "audio",
    ]


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b'"x"', b"{", b"3"])
@pytest.mark.parametrize("parse", [parse_chat, parse_completion])
def test_a_body_that_is_no_object_is_refused(parse: Any, body: bytes) -> None:
    with pytest.raises(InvalidParameter) as caught:
        parse(body)
    assert [fault.path for fault in caught.value.faults] == ["body"]


def test_required_fields_are_named() -> None:
    for parse, names in ((parse_chat, ["model", "messages"]), (parse_completion, ["model", "prompt"])):
        with pytest.raises(InvalidParameter) as caught:
            parse(b"{}")
        assert [(f.path, f.message) for f in caught.value.faults] == [(name, "is required") for name in names]


@pytest.mark.parametrize("text", ["NaN", "Infinity", "1e999", "18446744073709551616"])
def test_N11_numbers_that_json_does_not_have_are_refused_by_name(text: str) -> None:
    body = json.dumps({"model": MODEL, "messages": [TURN], "temperature": "@"}).replace('"@"', text)
    with pytest.raises(InvalidParameter) as caught:
        parse_chat(body.encode())
    assert [fault.path for fault in caught.value.faults] == ["temperature"]


@pytest.mark.parametrize("name", ["../etc", "a//b", "a\\b", "a%2fb", "-a", "a\nb", "x" * 256, "a b", "é"])
def test_N19_model_names_outside_the_grammar_are_refused(name: str) -> None:
    assert refusal(chat, model=name) == (InvalidParameter, ["model"])
    assert refusal(completion, model=name) == (InvalidParameter, ["model"])


def test_keep_alive_of_minus_one_is_never() -> None:
    assert chat(keep_alive=-1).keep_alive == math.inf


def test_a_small_request_is_converted_within_its_budget() -> None:
    """30 us on a quiet machine; the bound here is for a busy one."""
    body = orjson.dumps(
        {"model": MODEL, "messages": [TURN, TURN], "temperature": 0.7, "max_tokens": 9, "stream": True}
    )
    parse_chat(body)
    assert min(timeit.repeat(lambda: parse_chat(body), number=50, repeat=20)) / 50 < 300e-6
