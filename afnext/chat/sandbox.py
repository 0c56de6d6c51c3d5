"""A metered Jinja sandbox: a checkpoint's chat template is code of a stranger.

jinja2's immutable sandbox keeps a template away from Python's internals, but lets it run for ever and
fill the memory. Here every loop turn, macro, call, filter, test, operator and literal passes a meter
that counts steps, volume and processor time, and what could blow up inside one C call (powers,
repetition, padding, joins) is bounded before it runs. What chat templates do not need is left out:
a method or filter that is not in the tables below is refused by name.

The globals and filters are those that transformers offers to templates (``raise_exception``,
``strftime_now``, ``tojson``, ``namespace``, ``dict``, loop controls, ``{% generation %}``), so that
every template written for it renders alike.
"""

from __future__ import annotations

import functools
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from types import BuiltinMethodType, MethodType
from typing import Any

from jinja2 import Template, nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range
from jinja2.utils import Cycler, Joiner, Namespace, pass_context
from jinja2.visitor import NodeTransformer
from markupsafe import Markup

ELEMENT_COST = 8
"""What an element of a list or dict counts beside the characters of strings."""


class TemplateLimit(RuntimeError):
    """A template did more than it may."""


@dataclass(slots=True)
class Budget:
    """What one rendering may still spend: steps, characters written or held at once, CPU seconds."""

    steps: int = 300_000
    size: int = 2_000_000
    seconds: float = 5.0
    _written: int = 0
    _until: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        # Processor time of this thread: a busy machine must not fail an honest template. Seconds, not
        # parts of one: a collection of Python's garbage in between counts too.
        self._until = time.thread_time() + self.seconds

    def step(self) -> None:
        self.steps -= 1
        if self.steps < 0 or time.thread_time() > self._until:
            raise TemplateLimit("the template runs too long")

    def write(self, characters: int) -> None:
        self._written += characters
        if self._written > self.size:
            raise TemplateLimit(f"the template writes more than {self.size:,} characters")

    def hold(self, value: Any) -> Any:
        """Refuse a value that is too large when written out; shared parts count each time."""
        self.measure(value)
        return value

    def measure(self, value: Any) -> int:
        """The size of a value that is not too large."""
        left, stack = self.size, [value]
        while stack:
            item = stack.pop()
            if isinstance(item, str | bytes):
                left -= len(item)
            elif isinstance(item, Namespace):
                stack.append(object.__getattribute__(item, "_Namespace__attrs"))
            elif isinstance(item, Mapping):
                left -= ELEMENT_COST * len(item)
                if left >= 0:
                    stack.extend(item.keys())
                    stack.extend(item.values())
            elif isinstance(item, list | tuple | set | frozenset):
                left -= ELEMENT_COST * len(item)
                if left >= 0:
                    stack.extend(item)
            left -= 1
            self.fit(self.size - left)
        return self.size - left

    def fit(self, size: int) -> None:
        """Refuse to make something of ``size``."""
        if size > self.size:
            raise TemplateLimit(f"the template holds more than {self.size:,} characters at once")


_active: ContextVar[Budget] = ContextVar("budget")


def render(template: Template, variables: Mapping[str, Any], budget: Budget) -> str:
    """Render within ``budget``. ``variables`` are plain JSON values.

    Raises:
        TemplateLimit: the budget is spent.
        jinja2.TemplateError, Exception: whatever else goes wrong in the template.
    """
    token = _active.set(budget)
    try:
        return template.render(budget.hold(dict(variables)))
    finally:
        _active.reset(token)


# Methods: none of them can make something much larger than what it is given, or its size is
# checked first in _check_method.
# ruff: noqa: SIM905
_STR_METHODS = frozenset(
    "capitalize casefold count endswith find format format_map index isalnum isalpha isascii "
    "isdecimal isdigit islower isnumeric isspace istitle isupper join lower lstrip partition "
    "removeprefix removesuffix replace rfind rindex rpartition rsplit rstrip split splitlines "
    "startswith strip swapcase title upper".split()
)
_METHODS: dict[type, frozenset[str]] = {
    str: _STR_METHODS,
    Markup: _STR_METHODS,
    dict: frozenset(("copy", "get", "items", "keys", "values")),
    list: frozenset(("copy", "count", "index")),
    tuple: frozenset(("count", "index")),
    float: frozenset(("is_integer",)),
    LoopContext: frozenset(("changed", "cycle")),
    Cycler: frozenset(("next", "reset")),
}


def _check_method(owner: Any, name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Bound a method call; returns its arguments, a generator made a list."""
    if isinstance(owner, str) and name == "replace" and len(args) >= 2:
        _check_replace(owner, *args[:2])
    elif isinstance(owner, str) and name == "join" and args:
        args = (list(args[0]), *args[1:])
        _check_join(args[0], owner)
    return args


def _check_replace(value: Any, old: Any, new: Any, *_: Any, **__: Any) -> None:
    text, old, new = str(value), str(old), str(new)
    _active.get().fit(len(text) + (text.count(old) if old else len(text) + 1) * len(new))


def _check_join(value: Sequence[Any], d: Any = "", *_: Any, **__: Any) -> None:
    _active.get().hold(value)
    _active.get().fit(len(value) * len(str(d)))


def _check_format(text: str, *args: Any, **kwargs: Any) -> None:
    """A short format makes a long text by wide fields, and by naming a value many times."""
    if re.search(r"\d{4}|\*|\{[^{}]*\{", text.replace("{{", "")):
        raise SecurityError("a format in the template has too wide a field")
    fields = text.count("%") + text.count("{")
    _active.get().fit(len(text) + fields * _active.get().measure((args, kwargs)))


def _check_indent(s: str, width: int | str = 4, *_: Any, **__: Any) -> None:
    _active.get().fit((str(s).count("\n") + 1) * (width if isinstance(width, int) else len(width)))


def _check_round(value: Any, precision: int = 0, *_: Any, **__: Any) -> None:
    if not -20 <= precision <= 20:
        raise SecurityError("round: precision must lie between -20 and 20")


def _check_sum(iterable: Any, attribute: Any = None, start: Any = 0) -> None:
    if not isinstance(start, int | float):
        raise SecurityError("sum: start must be a number")


_FILTERS: dict[str, Callable[..., None] | None] = dict.fromkeys(
    "abs attr capitalize count d default dictsort e escape first float groupby int items last "
    "length list lower map max min reject rejectattr reverse safe select selectattr sort string "
    "title trim truncate unique upper wordcount".split()
) | {
    "format": _check_format,
    "indent": _check_indent,
    "join": _check_join,
    "replace": _check_replace,
    "round": _check_round,
    "sum": _check_sum,
}


def _metered(function: Callable[..., Any], check: Callable[..., None] | None) -> Callable[..., Any]:
    """The filter or test ``function``, with its check, its step and its result counted."""
    passed = 1 if hasattr(function, "jinja_pass_arg") else 0

    @functools.wraps(function)  # keeps jinja's marks
    def run(*args: Any, **kwargs: Any) -> Any:
        budget = _active.get()
        budget.step()
        if check is _check_join and not isinstance(args[passed], str | list | tuple):
            args = (*args[:passed], list(args[passed]), *args[passed + 1 :])
        budget.hold(args[passed:])
        if check is not None:
            check(*args[passed:], **kwargs)
        return budget.hold(function(*args, **kwargs))

    return run


def _tojson(
    x: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON, as transformers' filter of that name: jinja's own escapes HTML."""
    if (indent if isinstance(indent, int) else len(indent or "")) > 16:
        raise SecurityError("tojson: indent must be at most 16")
    encoder = json.JSONEncoder(
        ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    parts: list[str] = []
    size = 0
    for part in encoder.iterencode(x):
        size += len(part)
        _active.get().fit(size)
        parts.append(part)
    return "".join(parts)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(format: str) -> str:
    if re.search(r"\d{3}", format):
        raise SecurityError("strftime_now: the format has too wide a field")
    return datetime.now().strftime(format)


class _Dict:
    """``dict(...)`` without the type's own attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)


class _Namespace(Namespace):
    """A namespace without names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        # Positional only, so that a template may write namespace(self=...).
        Namespace.__init__(args[0])
        for name, value in dict(*args[1:], **kwargs).items():
            args[0][name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if str(name).startswith("_"):
            raise SecurityError(f"a namespace cannot hold {name!r}")
        super().__setitem__(name, value)


class _Format:
    """``str.format`` of the sandbox, its widths checked."""

    def __init__(self, wrapper: Callable[..., str], text: str) -> None:
        self._wrapper, self._text = wrapper, text

    def __call__(self, *args: Any, **kwargs: Any) -> str:
        _check_format(self._text, *args, **kwargs)
        return self._wrapper(*args, **kwargs)


class _Generation(Extension):
    """``{% generation %}...{% endgeneration %}`` marks what the assistant says; here just text."""

    tags = {"generation"}  # noqa: RUF012 (declared so by jinja2)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class _Meter(NodeTransformer):
    """Puts the meter into a parsed template: into loops, macros, concatenations and literals."""

    def _enter(self, node: Any) -> Any:
        self.generic_visit(node)
        literal = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        enter = nodes.Filter(nodes.Const(literal), "__enter", [], [], None, None)
        node.body.insert(0, nodes.ExprStmt(enter, lineno=node.lineno))
        return node

    visit_For = visit_Macro = visit_CallBlock = _enter

    def _hold(self, node: Any) -> Any:
        self.generic_visit(node)
        if getattr(node, "ctx", "load") != "load":  # the target of an assignment
            return node
        return nodes.Filter(node, "__hold", [], [], None, None, lineno=node.lineno)

    visit_List = visit_Tuple = visit_Dict = _hold

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:
        self.generic_visit(node)
        parts = nodes.List(node.nodes, lineno=node.lineno)
        return nodes.Filter(parts, "__concat", [], [], None, None, lineno=node.lineno)


# Passing the context keeps jinja from running these, and what they hold, while it compiles.
@pass_context
def _enter(context: Context, literal: int) -> None:
    _active.get().step()
    _active.get().write(literal)


@pass_context
def _hold(context: Context, value: Any) -> Any:
    _active.get().step()
    return _active.get().hold(value)


@pass_context
def _concat(context: Context, parts: list[Any]) -> str:
    return "".join(map(str, _hold(context, parts)))


@pass_context
def _finalize(context: Context, value: Any) -> str:
    budget = _active.get()
    budget.step()
    text = str(budget.hold(value))
    budget.write(len(text))
    return text


class MeteredEnvironment(ImmutableSandboxedEnvironment):
    """The environment to compile chat templates in; its templates run only through :func:`render`."""

    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "**", "%"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # nothing of a template runs while it is compiled
            finalize=_finalize,
            extensions=[_Generation, loopcontrols],
        )
        self.filters = {
            name: _metered(self.filters[name], check) for name, check in _FILTERS.items()
        } | {
            "tojson": _metered(_tojson, None),
            "__enter": _enter,
            "__hold": _hold,
            "__concat": _concat,
        }
        tests: dict[str, Any] = {**self.tests}
        self.tests = {name: _metered(test, None) for name, test in tests.items()}
        self.globals = {
            "range": safe_range,
            "dict": _Dict(),
            "namespace": _Namespace,
            "cycler": Cycler,
            "joiner": Joiner,
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
        }
        self._functions = tuple(self.globals.values())

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template = _Meter().visit(super()._parse(source, name, filename))
        return template.set_environment(self)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if not super().is_safe_attribute(obj, attr, value):
            return False
        if not callable(value) or isinstance(value, Macro | Undefined):
            return True
        return attr in _METHODS.get(type(obj), ())

    def unsafe_undefined(self, obj: Any, attribute: str) -> Undefined:
        raise SecurityError(f"the template reaches for {attribute!r} of a {type(obj).__name__}")

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapper = super().wrap_str_format(value)
        return None if wrapper is None else _Format(wrapper, value.__self__)

    def is_safe_callable(self, obj: Any) -> bool:
        if isinstance(obj, BuiltinMethodType | MethodType):
            return obj.__name__ in _METHODS.get(type(obj.__self__), ())
        if isinstance(obj, Macro | LoopContext | Joiner | Undefined | _Format):
            return True
        return any(obj is function for function in self._functions)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        budget = _active.get()
        budget.step()
        budget.hold((args, kwargs))
        if isinstance(__obj, BuiltinMethodType | MethodType):
            args = _check_method(__obj.__self__, __obj.__name__, args)
        return budget.hold(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        budget = _active.get()
        budget.step()
        budget.hold((left, right))
        if operator == "%" and isinstance(left, str):
            _check_format(left, right)
        elif operator == "**":
            if any(abs(x) > 1e6 for x in (left, right)) or abs(right) > 64:
                raise TemplateLimit("the template raises to too high a power")
        elif operator == "*":
            for one, other in ((left, right), (right, left)):
                if isinstance(other, int) and isinstance(one, str | list | tuple):
                    budget.fit((len(one) + 1) * other * ELEMENT_COST)
                elif isinstance(one, int) and abs(one) > 1 << 64:
                    raise TemplateLimit("the template multiplies too large a number")
        return budget.hold(super().call_binop(context, operator, left, right))
