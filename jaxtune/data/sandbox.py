"""Jinja's sandbox with bounds: whatever can grow or repeat is counted before it is done.

Jinja's own sandbox keeps templates from the rest of the program, but not from its time and memory.
Here, loops, calls, filters, operators, comparisons and outputs go through `meter`. The nodes of a
template that jinja gives no other way to intercept are wrapped in filters whose names contain a
space, which no template can write.
"""

import functools
import re
import string
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jinja2 import nodes
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from jaxtune.data import meter
from jaxtune.data.markup import repr_with_marks
from jaxtune.data.meter import CHARACTER, NODE, STEP, TemplateLimit, spend

WIDEST = 10_000  # of widths, indents and the like
BITS = 8192  # of whole numbers
PADDING = ("center", "ljust", "rjust", "zfill", "expandtabs", "to_bytes")  # methods with a width
# Filters that write text of what they are given, and those whose arguments multiply its length.
WRITING = {"string", "tojson", "escape", "e", "forceescape", "urlencode", "safe", "replace", "trim"}
CHEAP = {"length", "count", "first", "last", "default", "d", "items", "attr"}  # in any size
WIDENING = {"center", "indent", "truncate", "batch", "slice", "round", "tojson"}
UNUSED = ("pprint", "urlize", "wordwrap", "xmlattr")  # for web pages, and hard to bound
PERCENT = re.compile(r"%(?:\([^)]*\))?[^a-zA-Z%]*")  # a field of a printf format


class Guard(NodeTransformer):
    """Wraps nodes of a template in filters that count their work."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        node = self.generic_visit(node)
        node.iter = _wrapped(node.iter, "guard each")
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:
        node = self.generic_visit(node)
        return _wrapped(nodes.Tuple(node.nodes, "load", lineno=node.lineno), "guard join")

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        node = self.generic_visit(node)
        return _wrapped(node, "guard built") if node.ctx == "load" else node

    def visit_List(self, node: nodes.List) -> nodes.Filter:
        return _wrapped(self.generic_visit(node), "guard built")

    def visit_Dict(self, node: nodes.Dict) -> nodes.Filter:
        return _wrapped(self.generic_visit(node), "guard built")

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        node = self.generic_visit(node)
        return _wrapped(node, "guard cut") if isinstance(node.arg, nodes.Slice) else node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Compare:
        node = self.generic_visit(node)
        node.expr = _weighed(node.expr)
        for operand in node.ops:
            operand.expr = _weighed(operand.expr)
        return node

    def visit_Test(self, node: nodes.Test) -> nodes.Test:
        node = self.generic_visit(node)
        if node.args:
            node.node, node.args = _weighed(node.node), [_weighed(each) for each in node.args]
        return node


class Sandbox(ImmutableSandboxedEnvironment):
    """A sandbox that counts the work of its templates."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self, **options: Any):
        super().__init__(finalize=_text, **options)
        self.globals.pop("lipsum")
        for name in UNUSED:
            self.filters.pop(name)

    def guard_filters(self) -> None:
        """Makes all filters count their work; to be called once they are complete."""
        self.filters = {name: _guarded(name, each) for name, each in self.filters.items()}
        self.filters |= {
            "guard each": meter.counted,
            "guard join": _joined,
            "guard built": meter.built,
            "guard cut": meter.cut,
            "guard weighed": meter.weighed,
        }

    def concat(self, parts: Any) -> str:
        """Joins the outputs of a macro or block."""
        return "".join(map(_counted_part, parts))

    def call(self, context: Any, called: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Calls an object for a template."""
        spend(STEP)
        if isinstance(called, LoopContext):  # a recursive loop
            args = (meter.counted(args[0]), *args[1:]) if args else args
        owner, name = getattr(called, "__self__", None), getattr(called, "__name__", "")
        if isinstance(owner, str | bytes | int | float):
            _check_method(owner, name, [*args, *kwargs.values()])
        elif isinstance(owner, list | tuple | Mapping):
            spend(len(owner) * NODE)
        return meter.built(super().call(context, called, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Applies an operator that can make long texts, lists or numbers."""
        _OPERATORS[operator](left, right)
        return super().call_binop(context, operator, left, right)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Returns a bounded `str.format` for a template, or None for other values."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def bounded(*args: Any, **kwargs: Any) -> str:
            found = list(string.Formatter().parse(value.__self__))
            for _, _, form, _ in found:
                if form and ("{" in form or _wide(form)):
                    raise TemplateLimit(f"writes a text with the format {form[:40]!r}")
            written = sum(meter.measured([args, kwargs]))
            spend((len(value.__self__) + len(found) * (written + 999)) * CHARACTER)
            return wrapped(*args, **kwargs)

        return bounded

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return Guard().visit(super()._parse(source, name, filename))


def _wrapped(node: nodes.Node, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _weighed(node: nodes.Node) -> nodes.Node:
    return node if isinstance(node, nodes.Const) else _wrapped(node, "guard weighed")


def _text(value: Any) -> str:
    """Returns the text that an output writes of a value."""
    if not isinstance(value, str):
        spend(meter.measured(value)[1] * CHARACTER)
        value = repr_with_marks(value)
    return _counted_part(value)


def _counted_part(text: str) -> str:
    spend(NODE + len(text) * CHARACTER)
    return text


def _joined(values: tuple[Any, ...]) -> str:
    return "".join(map(_text, values))


def _guarded(name: str, apply: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a filter that counts its work; jinja passes some of them a context first."""
    skipped = 1 if hasattr(apply, "jinja_pass_arg") else 0

    @functools.wraps(apply)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        spend(STEP)
        value, options = args[skipped], [*args[skipped + 1 :], *kwargs.values()]
        if name == "join":
            value = list(meter.counted(value))
            args = (*args[:skipped], value, *args[skipped + 1 :])
        _check_filter(name, value, options)
        return meter.built(apply(*args, **kwargs))

    return guarded


def _check_filter(name: str, value: Any, options: list[Any]) -> None:
    """Counts what a filter will do with a value."""
    if name in CHEAP:
        return
    if isinstance(value, str):
        spend(len(value) * (CHARACTER if name in WRITING | WIDENING else NODE))
    elif name in WRITING or name in ("join", "format"):
        spend(meter.measured(value)[1] * CHARACTER)
    elif isinstance(value, list | tuple | Mapping):
        spend(len(value) * NODE)
    if name in WIDENING:
        widths = [len(each) if isinstance(each, str) else each for each in options]
        widest = max([0, *(abs(each) for each in widths if isinstance(each, int))])
        _check_width(widest)
        spend(sum(meter.measured(value)) * max(1, widest) if name != "round" else 0)
    elif name == "join":
        spend(len(value) * _length(options) * CHARACTER)
    elif name == "replace" and len(options) > 1:
        spend(str(value).count(str(options[0])) * len(str(options[1])) * CHARACTER)
    elif name == "format":
        _check_remainder(str(value), options)
    elif name == "sum" and any(isinstance(each, list | tuple) for each in options):
        raise TemplateLimit("adds lists with the filter sum")


def _check_method(owner: Any, name: str, options: list[Any]) -> None:
    """Counts what a method of a text or number will do."""
    if name in PADDING:
        widest = max([0, *(abs(each) for each in options if isinstance(each, int))])
        _check_width(widest)
        spend(widest * CHARACTER)
    if isinstance(owner, str | bytes):
        spend(len(owner) * CHARACTER)
        if name == "replace" and len(options) > 1:
            spend(owner.count(options[0]) * len(options[1]) * CHARACTER)
        elif name == "join" and options:
            total = meter.measured(options[0])
            spend((total[1] + total[0] * len(owner)) * CHARACTER)
        elif name in ("translate", "expandtabs"):
            spend(len(owner) * max(1, _length(options)) * CHARACTER)


def _length(options: list[Any]) -> int:
    """Returns a bound of the length of the longest text among the options."""
    return max(
        [0, *(each if isinstance(each, int) else meter.measured(each)[1] for each in options)]
    )


def _check_width(width: int) -> None:
    if width > WIDEST:
        raise TemplateLimit(f"pads a text by {width:,} characters")


def _wide(form: str) -> bool:
    """Returns whether a format pads a text by a thousand characters or more."""
    return any(len(digits) > 3 for digits in re.findall("[0-9]+", form))


def _check_sum(left: Any, right: Any) -> None:
    if isinstance(left, str | bytes) and isinstance(right, str | bytes):
        spend((len(left) + len(right)) * CHARACTER)
    elif isinstance(left, list | tuple) and isinstance(right, list | tuple):
        # All that the sum contains has been counted: on the left before, on the right now.
        spend(len(left) * CHARACTER + meter.measured(right)[1])


def _check_product(left: Any, right: Any) -> None:
    for times, value in ((left, right), (right, left)):
        if isinstance(times, int) and isinstance(value, str | bytes):
            spend(max(0, times) * len(value) * CHARACTER)
        elif isinstance(times, int) and isinstance(value, list | tuple):
            found = meter.measured(value)
            spend(max(0, times) * (found[0] * NODE + found[1]))
    if isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() + right.bit_length())


def _check_power(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int) and abs(left) > 1:
        _check_bits(left.bit_length() * abs(right))


def _check_remainder(left: Any, right: Any) -> None:
    if isinstance(left, str):
        found = PERCENT.findall(left)
        for field in found:
            if "*" in field or _wide(re.sub(r"\([^)]*\)", "", field)):
                raise TemplateLimit(f"writes a text with the format {field[:40]!r}")
        spend((len(left) + len(found) * (meter.measured(right)[1] + 999)) * CHARACTER)


def _check_bits(bits: int) -> None:
    if bits > BITS:
        raise TemplateLimit(f"computes a number of {bits:,} bits")


_OPERATORS = {
    "+": _check_sum,
    "*": _check_product,
    "**": _check_power,
    "%": _check_remainder,
}


def limited(parts: Iterator[str], most: int) -> str:
    """Joins the parts of a template's output, which has at most `most` characters."""
    kept, length = [], 0
    for part in parts:
        _counted_part(part)
        length += len(part)
        if length > most:
            raise TemplateLimit(f"writes more than {most:,} characters for one conversation")
        kept.append(part)
    return "".join(kept)
