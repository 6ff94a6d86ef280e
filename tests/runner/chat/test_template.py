"""Rendering: as other tools render, and nothing else when a template fails."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from runner.chat.template import OUTPUT_BYTES_MAX, SOURCE_MAX, ChatTemplate
from runner.domain.generation import TEMPLATE_OPTION_CHARACTERS_MAX, TEMPLATE_OPTIONS, ChatMessage
from runner.errors import InvalidParameter, TemplateFailed

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] "
    "+ '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
ALTERNATING = """
{%- if messages[0].role == 'system' %}
    {%- set preface = messages[0].content | trim + '\\n\\n' %}
    {%- set rest = messages[1:] %}
{%- else %}
    {%- set preface = '' %}
    {%- set rest = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in rest %}
    {%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate') }}
    {%- endif %}
    {%- if message.role == 'user' %}
        {{- '[ASK] ' ~ (preface if loop.first else '') ~ message.content.strip() ~ ' [/ASK]' }}
    {%- else %}
        {{- ' ' ~ message.content | trim ~ eos_token }}
    {%- endif %}
{%- endfor %}
"""
THINKING = """
{%- set ns = namespace(last=-1) %}
{%- for message in messages[::-1] %}
    {%- if message.role == 'user' %}
        {%- set ns.last = messages | length - 1 - loop.index0 %}
        {%- break %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if '</think>' in content and loop.index0 < ns.last %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '<' + message.role | upper + '>' + content }}
{%- endfor %}
{{- {'tools': tools, 'quote': '<"ü>'} | tojson }}
{%- if not (enable_thinking is defined and enable_thinking) %}{{ '<think></think>' }}{% endif %}
"""
TEMPLATES = {"chatml": CHATML, "alternating": ALTERNATING, "thinking": THINKING}
NOW = datetime.datetime(2025, 3, 4, 5, 6, 7)

ONE = (ChatMessage(role="user", content="hello"),)


def _render(source: str, messages: tuple[ChatMessage, ...] = ONE, **options: Any) -> str:
    return ChatTemplate(source, "<s>", "</s>", now=lambda: NOW).render(messages, options)


def _rendered_elsewhere(source: str, messages: tuple[ChatMessage, ...], **options: Any) -> str:
    """What a plain sandbox set up as transformers does it makes of a template."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    template = environment.from_string(
        source.replace("{%- generation %}", "").replace("{% endgeneration %}", ""),
        globals={"raise_exception": raise_exception},
    )
    return template.render(
        messages=[{"role": message.role, "content": message.content} for message in messages],
        tools=None,
        documents=None,
        add_generation_prompt=True,
        bos_token="<s>",
        eos_token="</s>",
        **options,
    )


_messages = st.lists(
    st.builds(
        ChatMessage,
        role=st.sampled_from(["system", "user", "assistant"]),
        content=st.text(st.characters(codec="utf-8"), max_size=20)
        | st.sampled_from(
            ["a</think>\n\nb", "{{ x }}", "{% raw %}", " padded \n", "<|im_end|>", "<b>&amp;'"]
        ),
    ),
    min_size=1,
    max_size=6,
).map(tuple)


@settings(deadline=None)
@given(st.sampled_from(sorted(TEMPLATES)), _messages, st.booleans())
def test_rendering_equals_a_plain_sandbox_or_fails_with_it(
    name: str, messages: tuple[ChatMessage, ...], thinking: bool
) -> None:
    try:
        expected = _rendered_elsewhere(TEMPLATES[name], messages, enable_thinking=thinking)
    except TemplateError:
        with pytest.raises(TemplateFailed):
            _render(TEMPLATES[name], messages, enable_thinking=thinking)
        return
    assert _render(TEMPLATES[name], messages, enable_thinking=thinking) == expected


def test_the_special_texts_and_the_generation_prompt_are_there() -> None:
    assert (
        _render("{{ bos_token }}{{ add_generation_prompt }}{{ tools is none }}{{ eos_token }}")
        == "<s>TrueTrue</s>"
    )


def test_json_is_written_as_python_writes_it() -> None:
    assert _render("{{ {'a': '<ü>', 'b': none} | tojson }}") == '{"a": "<ü>", "b": null}'
    assert _render("{{ [1] | tojson(indent=2) }}") == "[\n  1\n]"


def test_the_date_is_that_of_the_rendering() -> None:
    assert _render("{{ strftime_now('%d %b %Y') }}") == "04 Mar 2025"


def test_a_name_is_there_only_when_the_message_has_one() -> None:
    named = (ChatMessage(role="user", content="x", name="ann"), ChatMessage(role="user", content="y"))
    assert (
        _render("{% for m in messages %}{{ m.name is defined }}{{ m.name }};{% endfor %}", named)
        == "Trueann;False;"
    )


@pytest.mark.parametrize(("source", "role"), [(CHATML, "system"), (CHATML + "{# developer #}", "developer")])
def test_developer_is_system_to_a_template_that_does_not_know_the_word(source: str, role: str) -> None:
    assert _render(source, (ChatMessage(role="developer", content="x"),)).startswith(f"<|im_start|>{role}\n")


# options


def test_G08_allowed_options_reach_the_template() -> None:
    rendered = _render(
        "{{ enable_thinking }}{{ reasoning_effort }}", enable_thinking=False, reasoning_effort="low"
    )
    assert rendered == "Falselow"


@pytest.mark.parametrize(
    "name",
    [
        "messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token",
        "raise_exception", "strftime_now", "range", "namespace", "self", "loop", "chat_template",
        "unheard_of", "",
    ],
)  # fmt: skip
def test_G08_an_option_outside_the_allowlist_is_refused_by_name(name: str) -> None:
    with pytest.raises(InvalidParameter, match="chat_template_kwargs"):
        ChatTemplate(CHATML, "", "").render(ONE, {name: "x"})


def test_G08_no_allowed_option_has_a_name_that_rendering_uses() -> None:
    source = (
        "{{ messages }}{{ tools }}{{ documents }}{{ add_generation_prompt }}{{ bos_token }}{{ eos_token }}"
    )
    values = {name: (True if kind is bool else "x") for name, kind in TEMPLATE_OPTIONS.items()}
    assert _render(source, **values) == _render(source)


@pytest.mark.parametrize(
    ("name", "value"), [("enable_thinking", "yes"), ("enable_thinking", 1), ("reasoning_effort", True)]
)
def test_G08_an_option_of_another_type_is_refused(name: str, value: Any) -> None:
    with pytest.raises(InvalidParameter, match="must be"):
        ChatTemplate(CHATML, "", "").render(ONE, {name: value})


@pytest.mark.parametrize(("excess", "fits"), [(-1, True), (0, True), (1, False)])
def test_G08_an_options_text_has_a_limit(excess: int, fits: bool) -> None:
    options = {"reasoning_effort": "x" * (TEMPLATE_OPTION_CHARACTERS_MAX + excess)}
    if fits:
        assert (
            ChatTemplate("{{ reasoning_effort }}", "", "").render(ONE, options) == options["reasoning_effort"]
        )
    else:
        with pytest.raises(InvalidParameter):
            ChatTemplate("{{ reasoning_effort }}", "", "").render(ONE, options)


def test_every_faulty_option_is_reported() -> None:
    with pytest.raises(InvalidParameter) as caught:
        ChatTemplate(CHATML, "", "").render(ONE, {"messages": "x", "enable_thinking": "x"})
    assert [fault.path for fault in caught.value.faults] == [
        "chat_template_kwargs.messages",
        "chat_template_kwargs.enable_thinking",
    ]


# failures


def test_G09_a_model_without_a_template_says_what_to_do() -> None:
    with pytest.raises(TemplateFailed, match="--chat-template"):
        ChatTemplate(None, "", "").render(ONE, {})


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ raise_exception() }}", "TemplateError"),
        ("{% if %}", "line 1"),
        ("a\nb\n{{ x | no_such_filter }}", "line 3"),
        ("{{ nothing.there }}", "undefined"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ messages[0].content + 1 }}", "TypeError"),
        ("{{ '\\ud800' }}", "surrogates"),
        ("{{ raise_exception('\\ud800') }}", "failed"),
        ("{{ raise_exception('a\nb\x00c') }}", "a b"),
        ("{% include 'other' %}", "not available"),
        ("{% extends 'other' %}", "not available"),
        ("{% import 'other' as x %}", "not available"),
        ("{% from 'other' import x %}", "not available"),
        ("{% autoescape true %}{% endautoescape %}", "not available"),
    ],
)
def test_G09_a_template_that_fails_fails_the_request_with_its_reason(source: str, reason: str) -> None:
    template = ChatTemplate(source, "", "")
    for _ in range(2):  # a fault that was found by compiling is kept
        with pytest.raises(TemplateFailed, match="the chat template") as caught:
            template.render(ONE, {})
        assert reason in str(caught.value)
        str(caught.value).encode()


def test_a_failures_message_has_a_readable_length() -> None:
    with pytest.raises(TemplateFailed) as caught:
        _render("{{ raise_exception('x' * 100000) }}")
    assert len(str(caught.value)) < 400


def test_a_template_that_failed_for_one_request_serves_the_next() -> None:
    template = ChatTemplate("{{ raise_exception('no') if messages[0].content == 'bad' }}ok", "", "")
    with pytest.raises(TemplateFailed):
        template.render((ChatMessage(role="user", content="bad"),), {})
    assert template.render(ONE, {}) == "ok"


def test_preparing_tells_nothing_and_keeps_the_fault() -> None:
    template = ChatTemplate("{% if %}", "", "")
    template.prepare()
    with pytest.raises(TemplateFailed):
        template.render(ONE, {})


# limits


def test_G07_a_loop_is_cut_at_the_deadline_and_the_template_lives_on() -> None:
    spin = "{% for a in range(10000) %}{% for b in range(10000) %}{% endfor %}{% endfor %}"
    source = f"{{% if messages[0].content == 'spin' %}}{spin}{{% endif %}}done"
    template = ChatTemplate(source, "", "", deadline_s=0.05)
    with pytest.raises(TemplateFailed, match=r"0\.05 s"):
        template.render((ChatMessage(role="user", content="spin"),), {})
    assert template.render(ONE, {}) == "done"


@pytest.mark.parametrize(
    ("count", "fits"), [(OUTPUT_BYTES_MAX - 1, True), (OUTPUT_BYTES_MAX, True), (OUTPUT_BYTES_MAX + 1, False)]
)
def test_G07_the_output_ends_at_4_MiB(count: int, fits: bool) -> None:
    messages = (ChatMessage(role="user", content="x" * count),)
    if fits:
        assert len(_render("{{ messages[0].content }}", messages)) == count
    else:
        with pytest.raises(TemplateFailed, match="4194304"):
            _render("{{ messages[0].content }}", messages)


def test_G07_the_output_is_measured_in_bytes() -> None:
    with pytest.raises(TemplateFailed, match="4194304"):
        _render(
            "{{ messages[0].content }}",
            (ChatMessage(role="user", content="ü" * (OUTPUT_BYTES_MAX // 2 + 1)),),
        )


@pytest.mark.parametrize(("excess", "fits"), [(-1, True), (0, True), (1, False)])
def test_a_template_has_a_size_limit(excess: int, fits: bool) -> None:
    source = "x" * (SOURCE_MAX + excess)
    if fits:
        assert _render(source) == source
    else:
        with pytest.raises(TemplateFailed, match="1048576"):
            _render(source)


def test_everything_that_runs_a_template_runs_within_the_guard() -> None:
    entered = []

    @contextmanager
    def guard() -> Iterator[None]:
        entered.append("in")
        yield
        entered.append("out")

    template = ChatTemplate(CHATML, "", "", guard=guard)
    template.prepare()
    assert entered == ["in", "out"]
    template.render(ONE, {})
    assert entered == ["in", "out"] * 2


def test_running_out_of_memory_is_a_failed_template() -> None:
    @contextmanager
    def guard() -> Iterator[None]:
        yield
        raise MemoryError

    with pytest.raises(TemplateFailed, match="memory"):
        ChatTemplate(CHATML, "", "", guard=guard).render(ONE, {})
