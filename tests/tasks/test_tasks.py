"""What all tasks keep to, and what they share."""

from types import SimpleNamespace

import pytest

from jaxtune import tasks
from jaxtune.data.errors import RowError
from jaxtune.metrics import Metric
from jaxtune.tasks import find, names, palette

PLACE = "rows.jsonl:7"


def test_tasks_are_found_by_name():
    assert names() == ["alpaca", "caption", "detect", "palette", "price", "totto", "vqa"]
    assert find("palette") is palette
    with pytest.raises(ValueError, match=r"data\.task 'pallete' is not one of .*'palette', 'price"):
        find("pallete")


@pytest.mark.parametrize("name", names())
def test_a_task_has_what_evaluation_needs(name):
    task = find(name)
    assert task.COLUMNS and callable(task.prefix) and callable(task.suffix)
    assert all(isinstance(each, Metric) for each in task.METRICS)
    assert len({each.name for each in task.METRICS}) == len(task.METRICS) > 0
    with pytest.raises(RowError, match=r"rows\.jsonl:7: "):
        tasks.references(task, {}, PLACE)


@pytest.mark.parametrize("name", [name for name in names() if hasattr(find(name), "ASK")])
def test_a_plain_prompt_is_enough_to_ask(name):
    task = find(name)
    assert task.ASK in task.COLUMNS
    assert "a red boat" in task.prefix({task.ASK: "a red boat"}, PLACE)


def test_references_are_the_tasks_or_else_the_suffix():
    task = SimpleNamespace(suffix=lambda record, place: f" {record['said']} at {place}\n")
    assert tasks.references(task, {"said": "one"}, PLACE) == (f"one at {PLACE}",)
    task.references = lambda record, place: (record["said"], place)
    assert tasks.references(task, {"said": "one"}, PLACE) == ("one", PLACE)


def test_texts_of_a_column():
    for given, expected in [
        (" one ", ("one",)),
        (["one", " ", "two "], ("one", "two")),
        (("one",), ("one",)),
        (None, ()),
        ([], ()),
        ("", ()),
    ]:
        assert tasks.texts({"said": given}, "said", PLACE) == expected
    assert tasks.texts({}, "said", PLACE) == ()
    for given in (7, [7], {"a": "b"}, [None], ["one", ["two"]]):
        with pytest.raises(
            RowError, match=r"rows\.jsonl:7: column 'said' is .*; expected a text or a list"
        ):
            tasks.texts({"said": given}, "said", PLACE)


def test_long_values_are_cut_in_messages():
    assert tasks.short("ab") == "'ab'"
    assert len(tasks.short("a" * 500)) == 60
