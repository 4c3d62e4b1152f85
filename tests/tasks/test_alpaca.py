"""Alpaca's prompts, with and without an input, and the advice to use them."""

import pytest

from jaxtune.data.errors import RowError, column
from jaxtune.tasks import alpaca
from tests.tasks.answering import PLACE, scored

ROW = {"instruction": "Add the numbers.", "input": "2, 2", "output": " 4\n"}


def test_prompts_with_and_without_an_input():
    assert alpaca.prefix(ROW, PLACE) == (
        "Below is an instruction that describes a task, paired with an input that provides "
        "further context. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd the numbers.\n\n### Input:\n2, 2\n\n### Response:\n"
    )
    for empty in ({"input": ""}, {"input": None}, {}):
        row = {"instruction": "Add.", "output": "4", **empty}
        assert alpaca.prefix(row, PLACE) == (
            "Below is an instruction that describes a task. Write a response that appropriately "
            "completes the request.\n\n### Instruction:\nAdd.\n\n### Response:\n"
        )
    assert alpaca.suffix(ROW, PLACE) == " 4\n"


def test_answers_are_compared_with_the_output():
    assert scored(alpaca, (ROW, "4")) == {"rouge_l": 1, "chrf": 100}


@pytest.mark.parametrize(
    "change, problem",
    [
        ({"instruction": None}, r"column 'instruction' is empty \(null\)"),
        ({"input": 7}, "column 'input' is 7; expected a text"),
        ({"output": ["4"]}, r"column 'output' is \['4'\]; expected a text"),
    ],
)
def test_rows_that_are_no_texts(change, problem):
    with pytest.raises(RowError, match=rf"rows\.jsonl:7: {problem}"):
        alpaca.prefix(ROW | change, PLACE)
        alpaca.suffix(ROW | change, PLACE)


@pytest.mark.parametrize(
    "row, advice",
    [
        (ROW, 'these look like Alpaca rows: set data.task to "alpaca"'),
        ({"conversations": []}, 'conversations: set data.messages to "conversations"'),
        ({"messages": []}, 'conversations: set data.messages to "messages"'),
        ({"prompt": "a", "completion": "b"}, r'set data.prefix to "\{prompt\}" and data.suffix to'),
        ({"text": "a"}, "no column 'prefix'; the columns are 'text'$"),
    ],
)
def test_rows_without_the_default_columns_are_told_what_to_set(row, advice):
    with pytest.raises(RowError, match=advice):
        column(row, "prefix", PLACE)
