"""No template runs on, fills the memory or reaches Python, whatever it is; honest ones have room."""

from __future__ import annotations

import contextlib
import resource
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afnext.chat import ChatTemplate, Message, sandbox
from afnext.errors import ChatError

pytestmark = pytest.mark.slow

HI = [Message("user", "hi")]
BIG = "{% set big = 'a' * 99999 %}"

ENDLESS = [
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) if false %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{% set x = range(99999) | list %}{% endfor %}",
    "{% for i in range(99999) %}{% set x = range(99999) | select('in', range(99999) | list) %}"
    "{{ x | list | length }}{% endfor %}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% for i in [0, 1] recursive %}{{ loop([0, 1]) }}{% endfor %}",
    "{% for i in range(10, 99999) %}{% set x = 'a' * i in 'b' * 99999 %}{% endfor %}",
    BIG
    + "{% for i in range(99999) %}{% set x = big.replace('a', 'b') | upper | trim %}{% endfor %}",
]
LARGE = [
    "{{ 'a' * 10**10 }}",
    "{{ 10**10 * 'a' }}",
    "{{ [0] * 10**9 }}",
    "{{ 9**9**9 }}",
    "{% set n = namespace(s='a') %}{% for i in range(99) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "{% set n = namespace(s='a') %}{% for i in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "{% set n = namespace(x=[]) %}{% for i in range(99) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}",
    "{% set n = namespace(x=0) %}{% for i in range(99) %}{% set n.x = {'a': n.x, 'b': n.x} %}{% endfor %}",
    "{% set n = namespace(x=2) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}{{ n.x }}",
    "{% set n = namespace() %}{% set n.x = [n, n] %}{{ n.x }}",
    "{{ 'a' | center(10**9) }}",
    "{{ 'a'.ljust(10**9) }}",
    "{{ 'a'.zfill(10**9) }}",
    "{{ '\\t'.expandtabs(10**9) }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%*d' % (1000000000, 1) }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{{ '{:{}}'.format(1, 1000000000) }}",
    "{{ '%1000000000d' | format(1) }}",
    "{{ (1).to_bytes(10**10, 'big') }}",
    "{{ strftime_now('%1000000000Y') }}",
    "{{ 1 | round(10**9, 'ceil') }}",
    "{{ [1] | tojson(indent=10**10) }}",
    "{{ ['a', 'b'] | batch(10**9, 'x') | list }}",
    "{{ 'a' | indent(10**9) }}",
    "{{ lipsum(n=10**6) }}",
    BIG + "{{ big.replace('', big) }}",
    BIG + "{{ big | replace('', big) }}",
    BIG + "{{ big.join(range(9999) | map('string')) }}",
    BIG + "{{ range(9999) | join(big) }}",
    BIG + "{{ ('%s' * 9999) % ((big,) * 9999) }}",
    BIG + "{{ ('%(a)s' * 9999) % {'a': big} }}",
    BIG + "{{ ('{0}' * 9999).format(big) }}",
    BIG + "{{ ('%(a)s' * 9999) | format(a=big) }}",
    BIG + "{% for i in range(9999) %}{{ big }}{% endfor %}",
    BIG + "{% set x %}{% for i in range(9999) %}{{ big }}{% endfor %}{% endset %}",
    "{% set x %}{% for i in range(99999) %}" + "a" * 9999 + "{% endfor %}{% endset %}",
    "{{ [[1]] | sum(start=[]) }}{{ [[1] * 9999] * 9999 }}",
]
REACHING = [
    "{{ ''.__class__ }}",
    "{% if ''.__class__ %}{% endif %}",
    "{{ ''['__class__'] }}",
    "{{ '' | attr('__class__') }}",
    "{{ [''] | map(attribute='__class__') | list }}",
    "{{ '{0.__class__}'.format('') }}",
    "{{ '{0.__class__.__mro__}'.format_map({'0': ''}) }}",
    "{{ raise_exception.__globals__ }}",
    "{{ dict.__call__ }}",
    "{{ namespace.__init__ }}",
    "{{ namespace(__class__=1) }}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ self.__init__ }}",
    "{{ self._TemplateReference__context }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({}) }}",
    "{{ messages[0].clear() }}",
    "{{ (range(3) | map('string')).gi_frame }}",
    "{% include 'x' %}",
    "{% import 'x' as y %}",
    "{% extends '/etc/passwd' %}",
]
BROKEN = [
    "{%",
    "{{ x.y.z }}",
    "{% for %}",
    "{{ 1 / 0 }}",
    "{{ " + "(" * 9999,
    "{{ '' | nothing }}",
    "{{ x() }}",
]


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Room for 400 MB more: a hole in the sandbox must not take the machine with it."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (400 << 20), hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.fixture
def little_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of a second, so that the many endless templates do not take many seconds."""
    monkeypatch.setattr(sandbox, "Budget", partial(sandbox.Budget, seconds=0.25))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads memory from /proc")
@pytest.mark.usefixtures("little_memory", "little_time")
@pytest.mark.parametrize("source", ENDLESS + LARGE + REACHING + BROKEN)
def test_a_bad_template_is_refused_soon(source: str) -> None:
    """Every one ends in a ChatError within a second and a few hundred MB: it would take hours or all
    memory in an unlimited sandbox, or hand out what it should not."""
    started = time.thread_time()
    with pytest.raises(ChatError) as refusal:
        ChatTemplate(source).render(HI)
    assert time.thread_time() - started < 1.5  # the budget, and what one bounded step may take
    assert "MemoryError" not in str(refusal.value)


def test_the_limit_is_one_of_processor_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "Budget", partial(sandbox.Budget, seconds=1.0))
    started = time.thread_time()
    with pytest.raises(ChatError, match="too long"):
        ChatTemplate(ENDLESS[2]).render(HI)
    assert 0.9 < time.thread_time() - started < 3


@pytest.mark.usefixtures("little_time")
def test_the_reason_is_said() -> None:
    with pytest.raises(ChatError, match="too long"):
        ChatTemplate(ENDLESS[0]).render(HI)
    with pytest.raises(ChatError, match="__class__"):
        ChatTemplate("{{ ''.__class__ }}").render(HI)
    with pytest.raises(ChatError, match="only audio, please"):
        ChatTemplate("{{ raise_exception('only audio, please') }}").render(HI)


def test_an_honest_template_has_room() -> None:
    """A thousand turns of a thousand characters, through a template that looks at every one."""
    source = (
        "{% for m in messages %}{% if m.content.startswith('x') and 'z' not in m.content %}"
        "{{ m.role + ': ' + (m.content | trim) }}\n{% endif %}{% endfor %}"
    )
    messages = [Message("user", "x" * 1000) for _ in range(900)]
    assert ChatTemplate(source).render(messages) == ("user: " + "x" * 1000 + "\n") * 900


VOCABULARY = """{% {%- %} -%} {{ }} for in if else endfor endif set macro endmacro call endcall messages
m x range 99999 [0] .content .role ['role'] | join list map upper tojson ( ) , + * ** ~ % 'a' 9 namespace
n.x loop recursive break is string not __class__ .format .replace ="""
WORDS = st.sampled_from(VOCABULARY.split())


@settings(max_examples=150, deadline=None)
@given(st.lists(WORDS, max_size=25).map(" ".join) | st.text(max_size=40))
def test_any_text_is_a_template_or_refused(source: str) -> None:
    with contextlib.suppress(ChatError):
        assert isinstance(ChatTemplate(source).render(HI), str)
