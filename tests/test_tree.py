import jax.numpy as jnp
import pytest

from jaxtune import tree

LEAVES = {
    "embed": {"w": 0},
    "layers": {"attn": {"q": {"w": 1, "b": 2}}, "mlp": {"up": {"w": 3}}},
}


def test_paths_come_in_tree_order():
    assert tree.flatten(LEAVES) == {
        "embed/w": 0,
        "layers/attn/q/b": 2,
        "layers/attn/q/w": 1,
        "layers/mlp/up/w": 3,
    }


def test_flatten_and_unflatten_undo_each_other():
    assert tree.unflatten(tree.flatten(LEAVES)) == LEAVES


def test_the_first_rule_that_matches_wins():
    rules = [(r".*/b", "bias"), (r"layers/.*", "layer"), (r".*", "rest")]
    assert tree.select(LEAVES, rules) == {
        "embed": {"w": "rest"},
        "layers": {"attn": {"q": {"w": "layer", "b": "bias"}}, "mlp": {"up": {"w": "layer"}}},
    }


def test_a_pattern_matches_the_whole_path():
    with pytest.raises(tree.RuleError, match="no rule matches"):
        tree.select(LEAVES, [("layers", True), ("embed", True)])


def test_unmatched_leaves_and_the_rules_are_both_named():
    with pytest.raises(tree.RuleError) as error:
        tree.select(LEAVES, [(r"layers/atn/.*", 1), (r"embed/.*", 0), (r".*/up/w", 2)])
    message = str(error.value)
    assert "layers/attn/q/w" in message
    assert "layers/atn/.*    (matches no leaf)" in message
    assert "layers/mlp/up/w" in message.split("the leaves are:")[1]
    assert "layers/mlp/up/w" not in message.split("the rules, in order")[0]


def test_a_rule_that_comes_too_late_is_told_so():
    with pytest.raises(tree.RuleError, match=r"embed/w    \(earlier rules match all its leaves\)"):
        tree.select(LEAVES, [(r".*", 1), (r"embed/w", 2)])


def test_tables_for_many_models_may_have_idle_rules():
    assert tree.match([("head/w", 1), (".*", 2)], ["embed/w"], unused="allow") == {"embed/w": 2}


def test_long_listings_are_cut():
    with pytest.raises(tree.RuleError, match="… and 60 more"):
        tree.match([("x", 1)], [f"leaf{i}" for i in range(100)])


def test_partition_and_combine_undo_each_other():
    chosen = tree.select(LEAVES, [(r".*/w", True), (r".*", False)])
    taken, left = tree.partition(LEAVES, chosen)
    assert taken["layers"]["attn"]["q"] == {"w": 1, "b": None}
    assert tree.flatten(left) == {"layers/attn/q/b": 2}
    assert tree.combine(taken, left) == LEAVES


def test_combine_refuses_a_leaf_held_twice():
    with pytest.raises(ValueError, match="2 of the trees have the same leaf"):
        tree.combine(LEAVES, LEAVES)


def test_map_with_path_sees_every_path():
    paths = tree.map_with_path(lambda path, leaf: f"{path}={leaf}", {"a": {"b": 1}, "c": 2})
    assert paths == {"a": {"b": "a/b=1"}, "c": "c=2"}


def test_a_packed_leaf_can_stay_whole():
    packed = {"w": (jnp.ones(2), jnp.ones(2))}
    assert list(tree.flatten(packed)) == ["w/0", "w/1"]
    assert list(tree.flatten(packed, is_leaf=lambda x: isinstance(x, tuple))) == ["w"]
