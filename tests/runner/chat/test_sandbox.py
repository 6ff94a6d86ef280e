"""Hostile templates. Each must fail as a template, quickly and without making anything large."""

from __future__ import annotations

import time

import pytest

from runner.chat.template import ChatTemplate
from runner.domain.generation import ChatMessage
from runner.errors import TemplateFailed

_NESTED = "{% set ns = namespace(x=[1]) %}{% for i in range(64) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}"
"""A list that holds itself, in effect: 2^64 ones when it is printed, 65 lists in memory."""
_HUGE = 1_000_000_000


def _doubled(first: str, expression: str) -> str:
    loop = f"{{% for i in range(64) %}}{{% set ns.x = {expression} %}}{{% endfor %}}"
    return f"{{% set ns = namespace(x={first}) %}}" + loop


REACHING_OUT = [
    "{{ ''.__class__ }}",
    "{{ ''['__class__'] }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__ }}",
    "{{ messages[0].__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ namespace.__init__.__globals__.os }}",
    "{{ joiner().__class__ }}",
    "{{ raise_exception.__globals__ }}",
    "{{ strftime_now.__self__ }}",
    "{{ strftime_now.__func__.__code__ }}",
    "{{ range.__subclasses__() }}",
    "{{ dict.mro() }}",
    "{{ dict.fromkeys('ab') }}",
    "{{ self.__init__ }}",
    "{{ self._TemplateReference__context }}",
    "{{ loop.environment }}",
    "{% for a in messages %}{{ loop._recurse }}{% endfor %}",
    "{% macro f() %}{% endmacro %}{{ f._func }}",
    "{% macro f() %}{{ caller._func.__globals__ }}{% endmacro %}{% call f() %}{% endcall %}",
    "{{ ''.upper.__self__ }}",
    "{{ (1).__class__ }}",
    "{{ (1).real }}",
    "{{ (1.5).hex() }}",
    "{{ none.__class__ }}",
    "{{ undefined_thing.__class__.__init__.__globals__ }}",
    "{{ ''|attr('__class__') }}",
    "{{ [1]|map(attribute='__class__')|list }}",
    "{{ ['']|map('attr', '__class__')|list }}",
    "{{ messages|groupby('__class__') }}",
    "{{ messages|sort(attribute='__class__') }}",
    "{{ messages|selectattr('__class__')|list }}",
    "{{ messages|sum(attribute='__class__') }}",
    "{{ messages|join(',', attribute='__class__') }}",
    "{{ '{0.__class__}'.format('') }}",
    "{{ '{0[0].__class__}'.format([1]) }}",
    "{{ '{x.__class__}'.format(x='') }}",
    "{{ '{x.__class__}'.format_map({'x': ''}) }}",
    "{{ '{:{0.__class__}}'.format('') }}",
    "{% set f = ''.format %}{{ f.__globals__ }}",
    "{{ lipsum.__globals__ }}",
    "{{ url_for.__globals__ }}",
    "{{ config.items() }}",
    "{{ messages.append(1) }}",
    "{{ messages.clear() }}",
    "{{ messages.sort() }}",
    "{{ messages[0].update({'role': 'system'}) }}",
    "{{ messages[0].pop('role') }}",
    "{{ messages[0].setdefault('x', 1) }}",
    "{{ 'x'.encode() }}",
    "{{ 'x'.translate({}) }}",
    "{{ 'x'.maketrans('a', 'b') }}",
    "{% set ns = namespace(__class__=1) %}{{ ns.__class__ }}",
]

TOO_MUCH = [
    f"{{{{ range({_HUGE}) | list }}}}",
    "{{ range(10**30) }}",
    "{{ range(0, 0 - 10**30, -1) }}",
    "{{ 'a' * 10**10 }}",
    "{{ 10**10 * 'a' }}",
    "{{ [0] * 10**9 }}",
    "{{ (1, 2) * 10**9 }}",
    "{{ 9**(9**9) }}",
    "{{ 2**100000 }}",
    "{% set ns = namespace(x=2) %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    _doubled("'aa'", "ns.x + ns.x"),
    _doubled("'aa'", "ns.x ~ ns.x"),
    _doubled("'aa'", "[ns.x, ns.x] | join"),
    _doubled("'aa'", "''.join([ns.x, ns.x])"),
    _doubled("'aa'", "'%s%s' % (ns.x, ns.x)"),
    _doubled("'aa'", "'{0}{0}'.format(ns.x)"),
    _doubled("'aa'", "ns.x.replace('a', 'aa')"),
    _doubled("'aa'", "ns.x|replace('a', 'aa')"),
    "{% set ns = namespace(x='aa') %}{% for i in range(64) %}"
    "{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}{% endfor %}",
    _doubled("[1]", "ns.x + ns.x"),
    _doubled("[1]", "[ns.x, ns.x] | sum(start=[])"),
    _NESTED + "{{ ns.x }}",
    _NESTED + "{{ ns.x | string }}",
    _NESTED + "{{ ns.x | tojson }}",
    _NESTED + "{{ ns.x | upper }}",
    _NESTED + "{{ ns.x | trim }}",
    _NESTED + "{{ ns.x | wordcount }}",
    _NESTED + "{{ ns.x ~ '' }}",
    _NESTED + "{{ [ns.x] | join }}",
    _NESTED + "{{ '%s' % [ns.x] }}",
    _NESTED + "{{ '%r' % [ns.x] }}",
    _NESTED + "{{ '%s' | format(ns.x) }}",
    _NESTED + "{{ '{}'.format(ns.x) }}",
    _NESTED + "{{ '{!r}'.format(ns.x) }}",
    _NESTED + "{{ {'a': ns.x}.items() }}",
    "{{ namespace(a=1) }}",
    "{% set ns = namespace() %}{% set ns.a = [ns] %}{{ ns.a }}",
    f"{{{{ 'a' | center({_HUGE}) }}}}",
    f"{{{{ 'a'.center({_HUGE}) }}}}",
    f"{{{{ 'a'['center']({_HUGE}) }}}}",
    f"{{{{ ['a'] | map('center', {_HUGE}) | list }}}}",
    f"{{{{ 'a'.ljust({_HUGE}) }}}}",
    f"{{{{ 'a'.rjust({_HUGE}) }}}}",
    f"{{{{ 'a'.zfill({_HUGE}) }}}}",
    f"{{{{ '\\t'.expandtabs({_HUGE}) }}}}",
    f"{{{{ 'a' | indent({_HUGE}, true) }}}}",
    "{{ ('a\n' * 100000) | indent('b' * 100000) }}",
    "{{ ('a\\r' * 100000) | indent('b' * 100000) }}",
    f"{{{{ [1] | batch({_HUGE}, 'x') | list }}}}",
    f"{{{{ [1] | slice({_HUGE}) | list }}}}",
    f"{{{{ 5 | round({_HUGE}) }}}}",
    f"{{{{ 5 | round(-{_HUGE}, 'floor') }}}}",
    "{{ ('9' * 100000) | int }}",
    "{{ ('a' * 200000) | list }}",
    "{{ '%s' | format('x', a=1) }}",
    f"{{{{ '%{_HUGE}d' % 1 }}}}",
    f"{{{{ '%.{_HUGE}f' % 1.5 }}}}",
    f"{{{{ '%*d' % ({_HUGE}, 1) }}}}",
    f"{{{{ '%{_HUGE}d' | format(1) }}}}",
    f"{{{{ '{{:{_HUGE}}}'.format(1) }}}}",
    f"{{{{ '{{:{{}}}}'.format(1, {_HUGE}) }}}}",
    f"{{{{ '{{:.{_HUGE}f}}'.format(1.5) }}}}",
    "{{ ('{0}' * 10000).format('a' * 100000) }}",
    "{{ ('%(a)s' * 10000) % {'a': 'a' * 100000} }}",
    "{{ ('%999d' * 10000) % (1,) }}",
    f"{{{{ strftime_now('%{_HUGE}Y') }}}}",
    "{{ strftime_now('%Y' * 1000) }}",
    f"{{{{ [1] | tojson(indent={_HUGE}) }}}}",
    "{{ [1, 2] | tojson(separators=('a' * 1000000, ':')) }}",
    "{{ ('<' * 1000000) | escape }}",
    "{{ range(10000) | map('center', 10000) | join }}",
    "{% for i in range(10000) %}{{ 'a' * 100000 }}{% endfor %}",
    "{% set x %}{% for i in range(10000) %}{{ 'a' * 100000 }}{% endfor %}{% endset %}",
    "{% macro f() %}{% for i in range(10000) %}{{ 'a' * 100000 }}{% endfor %}{% endmacro %}{{ f() }}",
    "{% filter upper %}{% for i in range(10000) %}{{ 'a' * 100000 }}{% endfor %}{% endfilter %}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% macro f() %}{{ caller() }}{% endmacro %}"
    "{% macro g() %}{% call f() %}{{ g() }}{% endcall %}{% endmacro %}{{ g() }}",
    "{% for a in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "{% block x %}{{ self.x() }}{% endblock %}",
    "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "{% if true %}" * 3000 + "{% endif %}" * 3000,
]


ORDINARY = [
    ("{{ 'ab'.center(6) }}|{{ 'a'.ljust(3) }}|{{ 'a'.rjust(3) }}|{{ '7'.zfill(3) }}", "  ab  |a  |  a|007"),
    ("{{ 'a\\tb'.expandtabs(4) }}|{{ 'aXa'.replace('a', 'bb', 1) }}|{{ '-'.join('ab') }}", "a   b|bbXa|a-b"),
    ("{{ '{0} {x:>3} {0!r} {1[k]} {2[0]}'.format('a', {'k': 5}, [6], x=1) }}", "a   1 'a' 5 6"),
    ("{{ '{} {}'.format(1, 2) }}|{{ '{a}'.format_map({'a': 1}) }}|{{ '{:{}}|'.format(1, 3) }}", "1 2|1|  1|"),
    ("{{ '%s-%03d' % ('a', 5) }}|{{ '%s' % 'x' }}|{{ '%(a)s' % {'a': 1} }}|{{ 7 % 4 }}", "a-005|x|1|3"),
    ("{{ '%s'|format('x') }}|{{ '%(a)s'|format(a=1) }}", "x|1"),
    ("{{ 'a\nb'|indent(2) }}|{{ 'a\nb'|indent('>', true) }}", "a\n  b|>a\n>b"),
    ("{{ [1,2,3]|batch(2, 0)|list }}|{{ [1,2,3]|slice(2)|list }}", "[[1, 2], [3, 0]]|[[1, 2], [3]]"),
    ("{{ [1,2]|sum }}|{{ [[1],[2]]|sum(start=[]) }}|{{ [{'a': 2}]|sum(attribute='a') }}", "3|[1, 2]|2"),
    ("{{ messages|map(attribute='role')|join(', ') }}", "user, assistant"),
    ("{{ messages|join('+', attribute='role') }}", "user+assistant"),
    ("{{ messages|selectattr('role', 'equalto', 'user')|list|length }}", "1"),
    ("{{ ' a '|trim }}|{{ 'ab'|upper }}|{{ 'AB'|lower }}|{{ 'ab c'|title }}", "a|AB|ab|Ab C"),
    ("{{ '12'|int + 1 }}|{{ 'x'|int(5) }}|{{ 'ff'|int(0, 16) }}|{{ 2.567|round(1) }}", "13|5|255|2.6"),
    ("{{ '<a>'|safe }}|{{ '<a>'|e }}", "<a>|&lt;a&gt;"),
    ("{{ {'b': 1, 'a': 2}|dictsort }}|{{ {'a': 1}|items|list }}", "[('a', 2), ('b', 1)]|[('a', 1)]"),
    ("{{ 2**10 }}|{{ 3*4 }}|{{ 'ab'*2 }}|{{ 2*[1] }}|{{ [1]+[2] }}", "1024|12|abab|[1, 1]|[1, 2]"),
    ("{{ 1.5*2 }}|{{ 2**-1 }}|{{ 'a' * -1 }}|{{ 7 // 2 }}|{{ 1 - 3 }}", "3.0|0.5||3|-2"),
    ("{{ range(3)|list }}|{{ range(5, 1, -2)|list }}|{{ range(0)|list }}", "[0, 1, 2]|[5, 3]|[]"),
    ("{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.next() }}{{ c.current }}", "abab"),
    ("{% set j = joiner(',') %}{{ j() }}a{{ j() }}b", "a,b"),
    ("{% macro m(x, y=2) %}{{ x }}{{ y }}{{ caller() }}{% endmacro %}{% call m(1) %}!{% endcall %}", "12!"),
    ("{% macro m() %}{% endmacro %}{{ m.name }}", "m"),
    ("{% for m in messages %}{{ loop.index }}{{ loop.last }}{{ loop.previtem is defined }};{% endfor %}",
     "1FalseFalse;2TrueTrue;"),
    ("{% for x in [1,2,3] %}{% if x == 2 %}{% continue %}{% endif %}{{ x }}{% endfor %}", "13"),
    ("{% for x in [1,[2,[3]]] recursive %}{{ x if x is number else loop(x) }}{% endfor %}", "123"),
    ("{% filter upper %}a{% endfilter %}{% set x %}b{{ 1 }}{% endset %}{{ x }}{{ x.upper() }}", "Ab1B1"),
    ("{% block b %}x{% endblock %}{{ self.b() }}", "xx"),
    ("a{% generation %}b{{ 1 }}{% endgeneration %}c", "ab1c"),
    ("{{ 'a' ~ 1 ~ none ~ true }}|{{ missing }}|{{ missing is defined }}", "a1NoneTrue||False"),
    ("{{ messages[0].get('tool_calls') }}|{{ messages[0].tool_calls is defined }}", "None|False"),
    ("{{ 'abc'[::-1] }}|{{ messages[-1]['role'] }}|{{ messages[1:]|length }}", "cba|assistant|1"),
    ("{{ dict(a=1) }}|{{ {'a': [1, {'b': none}]} }}", "{'a': 1}|{'a': [1, {'b': None}]}"),
    ("{{ {'a': 1}.copy().keys()|list }}|{{ {'a': 1}.items()|list }}", "['a']|[('a', 1)]"),
    ("[{{ messages[0].content.split('l')|join('|') }}]", "[he||o]"),
]  # fmt: skip
"""Sources, and what the messages `user: hello`, `assistant: hi` make of them: the same as in plain Jinja."""


def _render(source: str) -> str:
    messages = (ChatMessage(role="user", content="hello"), ChatMessage(role="assistant", content="hi"))
    return ChatTemplate(source, "<s>", "</s>", deadline_s=60).render(messages, {})


@pytest.mark.parametrize("source", REACHING_OUT)
def test_G06_a_template_that_reaches_for_internals_fails(source: str) -> None:
    with pytest.raises(TemplateFailed):
        _render(source)


@pytest.mark.parametrize("source", TOO_MUCH, ids=range(len(TOO_MUCH)))
def test_G07_a_template_that_would_make_too_much_fails_before_it_does(source: str) -> None:
    start = time.process_time()
    with pytest.raises(TemplateFailed) as caught:
        _render(source)
    assert "finished" not in str(caught.value), "the deadline was needed"
    assert time.process_time() - start < 1


@pytest.mark.parametrize(("source", "expected"), ORDINARY)
def test_what_templates_ordinarily_do_works(source: str, expected: str) -> None:
    assert _render(source) == expected
