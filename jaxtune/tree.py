"""Leaves by slash path, and the one rule idiom: an ordered list of (pattern, value).

A pattern is a regular expression that must match a whole path, such as `layers/attn/.*/w`.
The first rule that matches a leaf gives its value. A leaf no rule matches is an error, and so
is a rule that decides no leaf: both are how a typo goes unnoticed for a day.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax

Rules = Sequence[tuple[str, Any]]
IsLeaf = Callable[[Any], bool] | None


class RuleError(ValueError):
    """Rules and leaves do not fit each other."""


def slash_path(keys: Iterable[Any]) -> str:
    """JAX's key path, joined by slashes: `layers/attn/q/w`."""
    return jax.tree_util.keystr(tuple(keys), simple=True, separator="/")


def flatten(tree: Any, is_leaf: IsLeaf = None) -> dict[str, Any]:
    """The leaves of `tree` by slash path, in tree order."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)
    return {slash_path(keys): leaf for keys, leaf in leaves}


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dictionaries from leaves by slash path."""
    root: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        node = root
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return root


def map_with_path(function: Callable[..., Any], tree: Any, *rest: Any, is_leaf: IsLeaf = None):
    """`jax.tree.map` whose function gets the slash path first."""

    def call(keys, *leaves):
        return function(slash_path(keys), *leaves)

    return jax.tree_util.tree_map_with_path(call, tree, *rest, is_leaf=is_leaf)


def match(rules: Rules, paths: Iterable[str], *, unused: str = "error") -> dict[str, Any]:
    """The value of the first rule that matches each path.

    `unused="allow"` is for tables that serve many models, where a rule may have nothing to do.
    """
    paths = list(paths)
    patterns = [(re.compile(pattern), value) for pattern, value in rules]
    values, decided = {}, set()
    for path in paths:
        for number, (pattern, value) in enumerate(patterns):
            if pattern.fullmatch(path):
                values[path] = value
                decided.add(number)
                break
    unmatched = [path for path in paths if path not in values]
    idle = [i for i in range(len(rules)) if i not in decided] if unused == "error" else []
    if unmatched or idle:
        raise RuleError(_explain(rules, paths, unmatched, idle))
    return values


def select(tree: Any, rules: Rules, *, unused: str = "error", is_leaf: IsLeaf = None) -> Any:
    """A tree like `tree` that holds the value of the first matching rule in each leaf's place."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)
    values = match(rules, (slash_path(keys) for keys, _ in leaves), unused=unused)
    return structure.unflatten(values[slash_path(keys)] for keys, _ in leaves)


def partition(tree: Any, chosen: Any, is_leaf: IsLeaf = None) -> tuple[Any, Any]:
    """Split a tree by a tree of booleans; each half has None where the other has the leaf."""
    taken = jax.tree.map(lambda leaf, take: leaf if take else None, tree, chosen, is_leaf=is_leaf)
    left = jax.tree.map(lambda leaf, take: None if take else leaf, tree, chosen, is_leaf=is_leaf)
    return taken, left


def combine(*trees: Any) -> Any:
    """Undo `partition`: the one leaf that is not None at each place."""

    def only(*leaves):
        present = [leaf for leaf in leaves if leaf is not None]
        if len(present) > 1:
            raise ValueError(f"combine: {len(present)} of the trees hold the same leaf")
        return present[0] if present else None

    return jax.tree.map(only, *trees, is_leaf=lambda node: node is None)


def _explain(rules: Rules, paths: list[str], unmatched: list[str], idle: list[int]) -> str:
    lines = []
    if unmatched:
        lines += ["no rule matches these leaves:", *_listing(unmatched)]
        lines += ["the rules are, in order:", *_listing([pattern for pattern, _ in rules])]
    if idle:
        lines += ["these rules decide no leaf:", *_listing(_idle(rules, paths, idle))]
        lines += ["the leaves are:", *_listing(paths)]
    return "\n".join(lines)


def _idle(rules: Rules, paths: list[str], idle: list[int]) -> list[str]:
    """Each idle pattern, and whether it matches nothing or comes too late."""
    described = []
    for number in idle:
        pattern = rules[number][0]
        late = any(re.fullmatch(pattern, path) for path in paths)
        reason = "earlier rules take all it matches" if late else "matches nothing"
        described.append(f"{pattern}    ({reason})")
    return described


def _listing(items: Sequence[str], most: int = 40) -> list[str]:
    shown = [f"  {item}" for item in items[:most]]
    return shown + ([f"  … and {len(items) - most} more"] if len(items) > most else [])
