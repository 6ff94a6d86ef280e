"""Which markers a model has, and what a prompt leaves to it. The templates only resemble real ones."""

from __future__ import annotations

import pytest

from runner.chat.reasoning import FAMILIES, Markers, PromptEnd, end_of_prompt, find_markers
from runner.chat.template import ChatTemplate
from runner.domain.generation import ChatMessage

THINK, MAGISTRAL, COMMAND = FAMILIES[0], FAMILIES[1], FAMILIES[2]

PLAIN = """
{%- for turn in messages %}[{{ turn.role }}]{{ turn.content }}[end]{% endfor %}
{%- if add_generation_prompt %}[assistant]{% endif %}"""
SWITCHED = """
{%- for turn in messages -%}
{%- set said = turn.content.split('</think>')[-1] if turn.role == 'assistant' else turn.content -%}
<|turn|>{{ turn.role }}
{{ said }}<|over|>
{% endfor -%}
{%- if add_generation_prompt %}<|turn|>assistant
{% if enable_thinking is defined and not enable_thinking %}<think>

</think>

{% endif %}{% endif %}"""
ALWAYS = """
{%- for turn in messages %}<|{{ turn.role }}|>{{ turn.content }}{% endfor -%}
{%- if add_generation_prompt %}<|assistant|><think>
{% endif %}"""
CLOSED_BY_HALF = """
{%- for turn in messages %}<|{{ turn.role }}|>{{ turn.content }}{% endfor -%}
{%- if add_generation_prompt %}<|assistant|>{{ '<think>' if thinking else '</think>' }}{% endif %}"""
FORGETFUL = """
{%- for turn in messages -%}
<|{{ turn.role }}|>{{ turn.content.split('</think>')[-1] if '</think>' in turn.content else turn.content }}
{%- endfor -%}
{%- if add_generation_prompt %}<|assistant|>{% endif %}"""
TOLD_TO = """
{%- if messages[0].role != 'system' %}[SYSTEM]Draft: [THINK]here[/THINK], then answer.[/SYSTEM]{% endif -%}
{%- for turn in messages %}[{{ turn.role }}]{{ turn.content }}[/{{ turn.role }}]{% endfor %}"""
TURNED = """
{%- for turn in messages %}<|TURN|><|{{ turn.role | upper }}|>{{ turn.content }}<|OVER|>{% endfor -%}
<|TURN|><|BOT|>{% if reasoning is defined and not reasoning %}<|START_THINKING|><|END_THINKING|>{% endif %}"""
CHANNELS = """
{%- for turn in messages %}<|start|>{{ turn.role }}<|message|>{{ turn.content }}<|end|>{% endfor -%}
Reasoning: {{ reasoning_effort or 'medium' }}
{%- if add_generation_prompt %}<|start|>assistant{% endif %}"""


def no_token(_: str) -> bool:
    return False


@pytest.mark.parametrize(
    ("template", "markers"),
    [
        (PLAIN, None),
        (SWITCHED, THINK),
        (ALWAYS, THINK),
        (CLOSED_BY_HALF, THINK),
        (FORGETFUL, THINK),
        (TOLD_TO, MAGISTRAL),
        (TURNED, COMMAND),
        (CHANNELS, None),
        (None, None),
        ("", None),
    ],
)
def test_a_template_names_the_markers_of_its_family(template: str | None, markers: Markers | None) -> None:
    assert find_markers(template, no_token) == markers


@pytest.mark.parametrize("markers", FAMILIES)
def test_where_a_template_is_silent_the_vocabulary_tells(markers: Markers) -> None:
    assert find_markers(PLAIN, lambda text: text in markers) == markers
    assert find_markers(None, lambda text: text in markers) == markers
    assert find_markers(PLAIN, lambda text: text == markers.start) is None


def test_of_several_families_in_a_template_the_vocabulary_knows_its_own() -> None:
    both = SWITCHED + TOLD_TO
    assert find_markers(both, no_token) == THINK
    assert find_markers(both, lambda text: text in MAGISTRAL) == MAGISTRAL
    assert find_markers(SWITCHED, lambda text: text in MAGISTRAL) == THINK


@pytest.mark.parametrize("markers", FAMILIES)
def test_markers_are_ascii_without_white_space_and_differ(markers: Markers) -> None:
    for marker in markers:
        assert marker.isascii()
        assert not any(character.isspace() for character in marker)
    assert markers.start not in markers.end
    assert markers.end not in markers.start


@pytest.mark.parametrize(
    ("template", "options", "end"),
    [
        (SWITCHED, {}, PromptEnd.UNDECIDED),
        (SWITCHED, {"enable_thinking": True}, PromptEnd.UNDECIDED),
        (SWITCHED, {"enable_thinking": False}, PromptEnd.CLOSED),
        (ALWAYS, {}, PromptEnd.OPEN),
        (CLOSED_BY_HALF, {"thinking": True}, PromptEnd.OPEN),
        (CLOSED_BY_HALF, {"thinking": False}, PromptEnd.CLOSED),
        (FORGETFUL, {}, PromptEnd.UNDECIDED),
    ],
)
def test_the_end_of_a_rendered_prompt_says_whether_reasoning_is_open(
    template: str, options: dict[str, str | int | float | bool], end: PromptEnd
) -> None:
    turns = (
        ChatMessage(role="user", content="1 < 2?"),
        ChatMessage(role="assistant", content="<think>hm</think>yes"),
        ChatMessage(role="user", content="and?"),
    )
    assert end_of_prompt(ChatTemplate(template, "", "").render(turns, options), THINK) is end


def test_markers_in_earlier_turns_do_not_count() -> None:
    assert end_of_prompt("<think>a</think>b<|user|>c<|assistant|>", THINK) is PromptEnd.UNDECIDED
    assert end_of_prompt("", THINK) is PromptEnd.UNDECIDED
