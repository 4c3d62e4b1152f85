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
    assert "layers/mlp/up/w" in message.split("the leaves most like them are:")[1]
    assert "layers/mlp/up/w" not in message.split("the rules, in order")[0]


def test_a_rule_that_comes_too_late_is_told_so():
    with pytest.raises(tree.RuleError, match=r"embed/w    \(earlier rules match all its leaves\)"):
        tree.select(LEAVES, [(r".*", 1), (r"embed/w", 2)])


def test_tables_for_many_models_may_have_idle_rules():
    assert tree.match([("head/w", 1), (".*", 2)], ["embed/w"], unused="allow") == {"embed/w": 2}


def test_long_listings_are_cut():
    with pytest.raises(tree.RuleError, match="… and 94 more"):
        tree.match([("x", 1)], [f"leaf{i}" for i in range(100)])


def test_the_names_of_modules_are_rules():
    rules = [("self_attn.q_proj", 1), ("up_proj", 2), (".*", 3)]
    assert tree.select({"params": LEAVES}, rules) == {
        "params": {
            "embed": {"w": 3},
            "layers": {"attn": {"q": {"w": 1, "b": 1}}, "mlp": {"up": {"w": 2}}},
        }
    }


def test_a_misspelt_name_is_told_the_nearest_ones():
    paths = [f"params/layers/{part}/w" for part in ("attn/q", "attn/k", "mlp/up")]
    paths += [f"params/layers/other{number}/w" for number in range(50)]
    with pytest.raises(tree.RuleError) as error:
        tree.match([("q_prj", 1), ("layers/atn/q/w", 2), (".*", 3)], paths)
    message = str(error.value)
    assert "q_prj    (matches no leaf; the nearest module name is q_proj)" in message
    assert "… and 47 more" in message and len(message.splitlines()) == 11


def test_a_pattern_that_would_hang_is_decided():
    with pytest.raises(tree.RuleError, match=r"\(\.\*\)\*x    \(matches no leaf"):
        tree.match([("(.*)*x", 1), (".*", 2)], ["layers/" + "a" * 400])


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
