"""Pytree leaves by slash path, and rules over these paths: ordered lists of (pattern, value).

A pattern is a regular expression that must match a whole path, such as `layers/attn/.*/w`, or the
name that transformers and PEFT give to a module, such as `q_proj` (see `modules.py`). The first
rule that matches a leaf gives its value. A leaf that no rule matches is an error, and so is a rule
that decides no leaf: either may be a typo that would otherwise go unnoticed.
"""

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax

from jaxtune.display.errors import UserError
from jaxtune.tree import modules
from jaxtune.tree.patterns import Patterns

Rules = Sequence[tuple[str, Any]]
IsLeaf = Callable[[Any], bool] | None
MOST_LISTED = 6  # paths and rules in an error message


class RuleError(UserError):
    """Raised for leaves that no rule matches, and for rules that decide no leaf."""


def slash_path(keys: Iterable[Any]) -> str:
    """Returns a JAX key path as names joined by slashes: `layers/attn/q/w`."""
    return jax.tree_util.keystr(tuple(keys), simple=True, separator="/")


def flatten(tree: Any, is_leaf: IsLeaf = None) -> dict[str, Any]:
    """Returns the leaves of `tree` by slash path, in tree order."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)
    return {slash_path(keys): leaf for keys, leaf in leaves}


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Returns nested dictionaries of leaves that are given by slash path."""
    root: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        node = root
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return root


def map_with_path(function: Callable[..., Any], tree: Any, *rest: Any, is_leaf: IsLeaf = None):
    """Maps a function over the leaves of one or more trees, as `jax.tree.map`, with their paths.

    Args:
      function: Called as `function(path, leaf, *other_leaves)` with the slash path of the leaf.
      tree: Tree whose structure the result has.
      *rest: Further trees with the structure of `tree`, or with it as a prefix.
      is_leaf: Returns whether a node of `tree` counts as a leaf.

    Returns:
      A tree like `tree` of what the function returns.
    """

    def call(keys, *leaves):
        return function(slash_path(keys), *leaves)

    return jax.tree_util.tree_map_with_path(call, tree, *rest, is_leaf=is_leaf)


def match(rules: Rules, paths: Iterable[str], *, unused: str = "error") -> dict[str, Any]:
    """Returns, by path, the value of the first rule that matches the path.

    Raises RuleError if no rule matches a path or, unless `unused` is "allow", if a rule decides no
    path. "allow" is for rules that serve many models, of which some have no such leaf.
    """
    paths = list(paths)
    deciding = _deciding(rules, paths)
    values = {path: rules[i][1] for path, i in deciding.items()}
    unmatched = [path for path in paths if path not in values]
    idle = set(range(len(rules))) - set(deciding.values()) if unused == "error" else ()
    if unmatched or idle:
        raise RuleError(_explain(rules, paths, unmatched, sorted(idle)))
    return values


def refuse_idle(name: str, rules: Rules, paths: Iterable[str]) -> None:
    """Raises RuleError, naming the list of rules, if one of them decides no path."""
    paths = list(paths)
    if idle := set(range(len(rules))) - set(_deciding(rules, paths).values()):
        raise RuleError(f"{name}: {_explain(rules, paths, [], sorted(idle))}")


def _deciding(rules: Rules, paths: Iterable[str]) -> dict[str, int]:
    """Returns, by path, the number of the first rule that matches; unmatched paths are left out."""
    patterns, texts = Patterns(), [modules.pattern(rule) for rule, _ in rules]
    found = {
        path: next((i for i, text in enumerate(texts) if patterns.fullmatch(text, path)), None)
        for path in paths
    }
    return {path: number for path, number in found.items() if number is not None}


def select(tree: Any, rules: Rules, *, unused: str = "error", is_leaf: IsLeaf = None) -> Any:
    """Replaces each leaf of a tree by the value of the first rule that matches its path.

    Args:
      tree: Tree whose leaves are replaced.
      rules: Ordered (pattern, value) over slash paths.
      unused: "error" raises RuleError for a rule that decides no leaf; "allow" ignores such rules.
      is_leaf: Returns whether a node of `tree` counts as a leaf.

    Returns:
      A tree like `tree` of rule values.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)
    values = match(rules, (slash_path(keys) for keys, _ in leaves), unused=unused)
    return structure.unflatten(values[slash_path(keys)] for keys, _ in leaves)


def partition(tree: Any, chosen: Any, is_leaf: IsLeaf = None) -> tuple[Any, Any]:
    """Splits a tree by a tree of booleans into (chosen, rest).

    Each part has the structure of `tree`, with None in place of the leaves of the other part.
    """
    taken = jax.tree.map(lambda leaf, take: leaf if take else None, tree, chosen, is_leaf=is_leaf)
    left = jax.tree.map(lambda leaf, take: None if take else leaf, tree, chosen, is_leaf=is_leaf)
    return taken, left


def combine(*trees: Any) -> Any:
    """Inverts `partition`: returns a tree of the leaf that is not None at each place.

    Raises ValueError if more than one tree has a leaf at the same place.
    """

    def only(*leaves):
        present = [leaf for leaf in leaves if leaf is not None]
        if len(present) > 1:
            raise UserError(f"combine: {len(present)} of the trees have the same leaf")
        return present[0] if present else None

    return jax.tree.map(only, *trees, is_leaf=lambda node: node is None)


def _explain(rules: Rules, paths: list[str], unmatched: list[str], idle: list[int]) -> str:
    lines = []
    if unmatched:
        lines += ["no rule matches these leaves:", *_listing(unmatched)]
        lines += ["the rules, in order:", *_listing([pattern for pattern, _ in rules])]
    if idle:
        late = {number for number in idle if _deciding([rules[number]], paths)}
        described = [_idle(rules[number][0], number in late) for number in idle]
        lines += ["these rules apply to no leaf:", *_listing(described)]
        if lost := [rules[number][0] for number in idle if number not in late]:
            ordered = sorted(paths, key=lambda path: -_likeness(lost[0][:100], path))
            lines += ["the leaves most like them are:", *_listing(ordered)]
    return "\n".join(lines)


def _idle(pattern: str, late: bool) -> str:
    """Returns an idle pattern with the reason: it matches nothing, or earlier rules decide."""
    if late:
        return f"{pattern}    (earlier rules match all its leaves)"
    near = modules.nearest(pattern)
    hint = f"; the nearest module name is {near}" if near and near != pattern else ""
    return f"{pattern}    (matches no leaf{hint})"


def _likeness(pattern: str, path: str) -> float:
    return difflib.SequenceMatcher(None, pattern, path, autojunk=False).ratio()


def _listing(items: Sequence[str]) -> list[str]:
    shown, more = [f"  {item}" for item in items[:MOST_LISTED]], len(items) - MOST_LISTED
    return shown + ([f"  … and {more} more"] if more > 0 else [])
