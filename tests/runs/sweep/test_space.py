"""Spaces: what they may hold, which keys count when, and the grid of lists."""

import pytest

from jaxtune.config.load import parse
from jaxtune.config.schema import Config
from jaxtune.runs.sweep.space import Range, Space, SpaceError, integer, log, text, uniform, when
from jaxtune.runs.sweep.variants import bases, groups, overridden, settings
from jaxtune.training.optim import ALIKE, DIRECTIONS

BASE = parse({"model": {"path": "base"}, "data": {"source": "rows"}, "trainable": {"rank": 16}})


def space(**keys) -> Space:
    return Space.of({key.replace("__", "."): each for key, each in keys.items()}, BASE)


def test_a_grid_has_every_combination_in_order():
    points = space(optim__lr=[1e-3, 1e-2], seed=[0, 1]).points
    assert points == [
        {"optim.lr": lr, "seed": seed} for lr in (1e-3, 1e-2) for seed in (0, 1)
    ]  # fmt: skip


def test_trials_on_one_base_are_neighbours():
    points = space(seed=[0, 1], model__quant=["nf4", None]).points
    assert [point["model.quant"] for point in points] == ["nf4", "nf4", None, None]
    assert bases([overridden(BASE, point) for point in points]) == 2


def test_rank_counts_only_with_adapters():
    found = space(trainable__rank=[4, 8], trainable__kind=["full", "lora"]).points
    assert found == [
        {"trainable.kind": "full"},
        {"trainable.kind": "lora", "trainable.rank": 4},
        {"trainable.kind": "lora", "trainable.rank": 8},
    ]
    assert overridden(BASE, found[0]).trainable.rank == 8  # the default: the config's 16 is dropped


def test_a_condition_of_ones_own():
    found = space(
        optim__weight_decay=when([0.0, 0.1], "optim.name", "adamw"), optim__name=["adamw", "sgd"]
    )
    assert len(found.points) == 3 and found.points[-1] == {"optim.name": "sgd"}


def test_sections_may_be_nested_and_values_get_the_type_of_their_field():
    found = Space.of({"optim": {"lr": [1]}, "schedule": {"warmup": uniform(0, 0.1)}}, BASE)
    assert found.dimensions[0].values == (1.0,) and found.ranged == ("schedule.warmup",)
    assert space(trainable__targets=[["q_proj", "v_proj"], "attention"]).points[0] == {
        "trainable.targets": ("q_proj", "v_proj")
    }


def test_ranges_draw_what_they_say():
    assert integer(4, 64) == Range(4, 64, whole=True) and log(1e-5, 1e-2).log
    assert str(space(trainable__rank=integer(4, 64, log=True)).dimensions[0]) == (
        "4 to 64 (integer, log)"
    )


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"optim__rate": [1]}, "no such field; did you mean optim"),
        ({"optim": [1]}, "optim: found [1], but this is a section"),
        ({"optim__lr": []}, "optim.lr: found an empty list"),
        ({"optim__lr": 3}, "optim.lr: found 3, expected a list of values, or a range"),
        ({"optim__lr": ["fast"]}, "optim.lr: found 'fast', expected number"),
        ({"optim__lr": [1e-3, 1e-3]}, "optim.lr: found 0.001 twice"),
        ({"optim__name": uniform(0, 1)}, "found a range, but this field is no number"),
        ({"trainable__rank": log(1, 8)}, "is a whole number; use integer()"),
        ({"trainable__rank": integer(0, 8)}, "trainable.rank: found 0, expected whole number ≥ 1"),
        ({"optim__lr": log(0, 1)}, "a logarithmic range must be above 0"),
        ({"optim__lr": uniform(1, 0)}, "expected the lower number first"),
        ({"optim__lr": uniform(float("nan"), 1)}, "found a range from nan"),
        ({"optim__momentum": [0.9]}, "counts only when optim.name is 'sgd', but it is 'adamw'"),
        ({"optim__lr": when([1], "optim.nam", 2)}, "when optim.nam: no such field; did you mean"),
        (
            {"seed": when([1], "steps", 2), "steps": when([2], "seed", 1)},
            "depend on each other in a circle",
        ),
    ],
)
def test_a_bad_space_ends_in_one_message(keys, message):
    with pytest.raises(SpaceError) as error:
        space(**keys)
    assert message in str(error.value)


def test_all_problems_are_in_one_message():
    with pytest.raises(SpaceError) as error:
        space(optim__lr=[], seed=["one"])
    assert "optim.lr" in str(error.value) and "seed" in str(error.value)


def test_an_empty_space_and_a_grid_of_ranges_are_refused():
    with pytest.raises(SpaceError, match="expected a dictionary of config keys"):
        Space.of({}, BASE)
    with pytest.raises(SpaceError, match=r"a grid needs lists, but optim\.lr is a range"):
        space(optim__lr=log(1e-4, 1e-2)).points  # noqa: B018
    with pytest.raises(SpaceError, match="more than 10,000 points"):
        space(seed=list(range(101)), trainable__rank=list(range(1, 101))).points  # noqa: B018


def test_overrides_are_told_by_short_names():
    assert text({"optim.lr": 0.0003, "optim.name": "sgd", "model.x.name": None}) == (
        "lr=0.0003 optim.name=sgd model.x.name=None"
    )


def test_steps_take_the_place_of_epochs():
    base = parse({"model": {"path": "base"}, "data": {"source": "rows"}, "epochs": 3})
    assert overridden(base, {"steps": 5}).epochs is None
    assert overridden(base, {"steps": 5}).steps == 5


def test_programs_are_shared_where_only_numbers_differ():
    points = space(optim__lr=[1e-3, 1e-2], trainable__rank=[2, 4], seed=[0, 1]).points
    configs = [overridden(BASE, point) for point in points]
    found = groups(configs, together=False)
    assert [len(group.trials) for group in found] == [4, 4]
    assert {points[each]["trainable.rank"] for each in found[0].trials} == {2}
    (together,) = groups(configs)
    assert len(together.trials) == 8 and together.together and together.seeds
    assert together.config.trainable.rank == 4


def test_what_changes_the_base_or_has_other_arrays_by_rank_is_not_trained_together():
    kinds = [overridden(BASE, {"trainable.kind": kind}) for kind in ("attention", "full")]
    assert [group.together for group in groups(kinds * 2)] == [False, False]
    ranks = space(optim__name=list(DIRECTIONS), trainable__rank=[2, 4]).points
    found = groups([overridden(BASE, point) for point in ranks])
    alike = {group.config.optim.name for group in found if group.together}
    assert alike == set(ALIKE)


def test_settings_are_what_differs_from_the_defaults():
    assert settings(overridden(BASE, {"optim.lr": 0.5})) == {
        "model": {"path": "base"},
        "data": {"source": "rows"},
        "trainable": {"rank": 16},
        "optim": {"lr": 0.5},
    }
    assert settings(Config()) == {}
