"""Strategies that the classes share: junk values, edits of bytes, and edits of JSON documents."""

import json
import math
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

EXTREMES = [
    *(0, -1, 1, 2, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64, 10**9, 10**12, 10**30),
    *(-(2**31), -(2**63), 10**400),
    *(0.0, -0.0, 0.5, 1.0, -1.0, 1e-320, 1e-45, 1e38, 1e40, 1e308, math.inf, -math.inf, math.nan),
]
# Texts that look like something else, hold control characters, or are simply too long.
ODD = [
    *("", " ", "\n", "a", "\0", "a\0b", "\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "\r", "\t"),
    *("\ud800", "a\ud800b", "\udcff", "\ufeff", "\u202e", "😀", "é", "`", "```", "<b>", "%s", "{}"),
    *("{", "}", "{0}", "{a.b}", "{a[0]}", "{prefix!r:>9}", "{prefix:>1000000000}", "None", "nan"),
    *("../..", "/", "/dev/null", "/dev/zero", "~", "~nobody/x", ".", "a/b", "a/b@c", "http://a"),
    *("*", "**", "[", "(", "(.*)*x", "(a+)+$", "\\", "a" * 300, "a" * 10_000, "é" * 200),
]
scalars = st.one_of(
    st.sampled_from([None, True, False]),
    st.sampled_from(EXTREMES),
    st.sampled_from(ODD),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.text(st.characters(codec=None), max_size=8),  # lone surrogates too
)
junk = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.sampled_from(ODD) | st.text(max_size=6), inner, max_size=4),
    ),
    max_leaves=6,
)
texts = st.one_of(st.sampled_from(ODD), st.text(st.characters(codec=None), max_size=30))

# Edits of bytes: a tuple (what to do, place from 0 to 1 or in bytes, an argument).
Edits = Sequence[tuple[str, int | float, Any]]
places = st.one_of(st.integers(0, 64), st.integers(0, 3_000), st.floats(0, 1))
edits = st.lists(
    st.one_of(
        st.tuples(st.just("set"), places, st.integers(0, 255)),
        st.tuples(st.just("flip"), places, st.integers(0, 7)),
        st.tuples(st.just("cut"), places, st.integers(1, 40)),
        st.tuples(st.just("insert"), places, st.binary(min_size=1, max_size=12)),
        st.tuples(st.just("repeat"), places, st.integers(1, 200)),
        st.tuples(st.just("end"), places, st.just(0)),
        st.tuples(st.just("zero"), places, st.integers(1, 64)),
    ),
    min_size=1,
    max_size=4,
)


def edited(content: bytes, changes: Edits) -> bytes:
    """Applies edits to bytes."""
    for kind, place, more in changes:
        at = int(place * len(content)) if isinstance(place, float) else min(place, len(content))
        here = content[at : at + 1]
        if kind == "set":
            content = content[:at] + bytes([more]) + content[at + 1 :]
        elif kind == "flip" and here:
            content = content[:at] + bytes([here[0] ^ 1 << more]) + content[at + 1 :]
        elif kind == "cut":
            content = content[:at] + content[at + more :]
        elif kind == "insert":
            content = content[:at] + more + content[at:]
        elif kind == "repeat":
            content = content[:at] + content[at : at + 16] * more + content[at:]
        elif kind == "end":
            content = content[:at]
        elif kind == "zero":
            content = content[:at] + bytes(len(content[at : at + more])) + content[at + more :]
    return content


# Whole files that are no document of any kind.
wholes = st.one_of(
    st.sampled_from(
        [b"", b" ", b"[]", b"{}", b"null", b"5", b'"a"', b"{", b"\xff\xfe{\0}\0", b"\xef\xbb\xbf{}"]
    ),
    st.sampled_from(["[", '{"a":', "[[{"]).map(lambda text: (text, 100_000)),  # nested deeply
    st.binary(max_size=60),
    st.sampled_from([b"\x80\x04\x95\0\0\0\0", b"PK\x03\x04" + bytes(40), b"NaN", b"1e999"]),
)


def content_of(whole: Any) -> bytes:
    """Returns the bytes of one of `wholes`."""
    return whole if isinstance(whole, bytes) else (whole[0] * whole[1]).encode()


def paths(document: Any, before: tuple = ()) -> list[tuple]:
    """Returns the paths of all nodes of a JSON document, at most 40 of a list or an object."""
    inner = (
        document.items()
        if isinstance(document, dict)
        else enumerate(document)
        if isinstance(document, list)
        else ()
    )
    found = [before]
    for key, value in list(inner)[:40]:
        found += paths(value, (*before, key))
    return found


def node_edits(document: Any, values: st.SearchStrategy = junk) -> st.SearchStrategy:
    """Returns a strategy of edits of a JSON document: (path, "set" | "drop" | "add", value)."""
    known = paths(document)
    shallow = [path for path in known if len(path) <= 2]
    where = st.one_of(st.sampled_from(shallow), st.sampled_from(known))
    one = st.tuples(where, st.sampled_from(["set", "set", "set", "drop", "add"]), values)
    return st.lists(one, min_size=1, max_size=3)


def document_of(content: bytes, changes: Sequence[tuple[tuple, str, Any]]) -> bytes:
    """Applies edits of nodes to a JSON document; edits of nodes that are gone are left out."""
    document = json.loads(content)
    for path, kind, value in changes:
        document = _changed(document, path, kind, value)
    return json.dumps(document, ensure_ascii=True).encode()


def _changed(document: Any, path: tuple, kind: str, value: Any) -> Any:
    if not path:
        if kind == "add" and isinstance(document, dict):
            return {**document, "added": value}
        return value if kind == "set" else document
    node = document
    try:
        for key in path[:-1]:
            node = node[key]
        if kind == "set":
            node[path[-1]] = value
        elif kind == "drop":
            del node[path[-1]]
        elif isinstance(node[path[-1]], list):
            node[path[-1]].append(value)
        elif isinstance(node[path[-1]], dict):
            node[path[-1]]["added"] = value
    except (LookupError, TypeError):
        pass
    return document


def file_edits(content: bytes) -> st.SearchStrategy:
    """Returns a strategy of changes of a file: ("bytes" | "whole" | "nodes", edits)."""
    kinds = [
        st.tuples(st.just("bytes"), edits),
        st.tuples(st.just("whole"), wholes),
    ]
    try:
        nodes = node_edits(json.loads(content))
    except ValueError:
        pass
    else:
        kinds += [st.tuples(st.just("nodes"), nodes)] * 2
    return st.one_of(kinds)


def apply(content: bytes, change: tuple[str, Any]) -> bytes:
    """Applies a change of `file_edits` to the content of the file."""
    kind, value = change
    if kind == "bytes":
        return edited(content, value)
    return content_of(value) if kind == "whole" else document_of(content, value)
