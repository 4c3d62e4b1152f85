"""Pictures with boxes, as PaliGemma is asked for them."""

import re

import pytest
from tokenizers import AddedToken, normalizers

from jaxtune.data.errors import RowError
from jaxtune.data.examples import RowEncoder, Written
from jaxtune.data.tokenizer import Tokenizer
from jaxtune.tasks import detect
from tests.data import made
from tests.tasks.answering import PLACE, scored

ROW = {
    "labels": ["cat", "dog", "cat"],
    "boxes": [[20, 10, 60, 40], [0, 0, 200, 100], [100, 50, 120, 100]],
    "width": 200,
    "height": 100,
}
SUFFIX = (
    "<loc0102><loc0102><loc0409><loc0307> cat ; <loc0000><loc0000><loc1023><loc1023> dog ; "
    "<loc0512><loc0512><loc1023><loc0614> cat"
)


def test_what_to_look_for():
    assert detect.prefix(ROW, PLACE) == "detect cat ; dog\n"
    assert detect.prefix({"objects": ["cow", "cat", "cow"]} | ROW, PLACE) == "detect cow ; cat\n"
    assert detect.prefix({"objects": "a red boat"}, PLACE) == "detect a red boat\n"
    assert detect.prefix({"suffix": SUFFIX}, PLACE) == "detect cat ; dog\n"


def test_boxes_in_pixels_and_in_shares_are_the_same():
    assert detect.suffix(ROW, PLACE) == SUFFIX
    shares = [
        [left / 200, top / 100, right / 200, low / 100] for left, top, right, low in ROW["boxes"]
    ]
    assert detect.suffix({"labels": ROW["labels"], "boxes": shares}, PLACE) == SUFFIX
    beyond = ROW | {"labels": ["cat"], "boxes": [[-20, -1, 300, 101]]}
    assert detect.suffix(beyond, PLACE) == "<loc0000><loc0000><loc1023><loc1023> cat"


def test_a_suffix_that_is_there_stays_as_it_is():
    outlined = (
        "<loc0001><loc0002><loc0003><loc0004><seg001> cat;<loc0001><loc0002><loc0003><loc0009> a"
    )
    assert detect.suffix({"suffix": f" {outlined} "}, PLACE) == outlined


@pytest.mark.parametrize(
    "change, problem",
    [
        ({"boxes": None}, "column 'boxes'"),
        ({"boxes": ROW["boxes"][:2]}, "expected a list of 3 boxes, one for each of 'labels'"),
        ({"boxes": "none"}, "column 'boxes' is 'none'; expected a list of 3 boxes"),
        ({"boxes": [[1, 2, 3, 4], [1, 2, 3], [1, 2, 3, 4]]}, r"a box is \[1, 2, 3\] in a picture"),
        ({"boxes": [[1, 2, 3, "4"]] * 3}, r"a box is \[1, 2, 3, '4'\] in a picture of 200 x 100"),
        ({"boxes": [[1, 2, 3, float("nan")]] * 3}, "a box is .*nan"),
        (
            {"boxes": [[30, 2, 3, 4]] * 3},
            r"a box is \[30, 2, 3, 4\].*; expected \[x_min, y_min, x_max, y_max\] within",
        ),
        ({"width": None, "height": None}, r"a box is \[20, 10, 60, 40\] in a picture of 1 x 1"),
        ({"width": 0}, "'width' and 'height' are 0 and 100; expected pixels"),
        ({"width": None}, "'width' and 'height' are None and 100; expected pixels"),
        ({"labels": ["a;b"] * 3}, "the label 'a;b' contains <, >, ; or a line break"),
        ({"suffix": "a cat"}, "column 'suffix' is 'a cat'; expected boxes"),
        ({"suffix": f"{SUFFIX} ; a cat"}, "column 'suffix' is .*; expected boxes"),
    ],
)
def test_rows_without_boxes(change, problem):
    with pytest.raises(RowError, match=rf"(?s)rows\.jsonl:7: .*{problem}"):
        detect.suffix(ROW | change, PLACE)


def test_answers_are_scored_by_the_boxes_found():
    assert scored(detect, (ROW, SUFFIX)) == {"f1@0.5": 1, "iou": 1, "malformed": 0}
    found = scored(detect, (ROW, f"{SUFFIX.split(' ; ')[1]} ; a cat"))
    assert found == pytest.approx({"f1@0.5": 2 / 4, "iou": 1 / 3, "malformed": 1 / 2})


def test_what_is_drawn_and_shown():
    assert [box.label for box in detect.drawn(f"{SUFFIX} ; what")] == ["cat", "dog", "cat"]
    assert detect.drawn("what") == []
    lines = detect.shown(f"{SUFFIX} ; what", colour=False).splitlines()
    assert lines[0] == "cat: 10% to 30% from the left, 10% to 40% from the top"
    assert len(lines) == 4 and lines[3] == "malformed boxes: 1"
    coloured = detect.shown(SUFFIX, colour=True)
    assert re.sub("\033\\[[\\d;]*m( {2}\033\\[0m )?", "", coloured).splitlines() == lines[:3]
    patches = re.findall("\033\\[48;2;([\\d;]+)m", coloured)
    assert patches[0] == patches[2] != patches[1]
    assert detect.shown(" what\n", colour=True) == "no box: 'what'"


PIECES = [f"<loc{number:04d}>" for number in range(1024)]


def sentencepiece(directory):
    """As big_vision's `.model`: location tokens among the symbols that its user defined."""
    sizes = {"vocab_size": 1500, "user_defined_symbols": ["\n\n", *PIECES]}
    made.train_sentencepiece(directory / "tokenizer.model", **sizes)


def json(directory):
    """As transformers writes it: location tokens added, and not special."""
    tokenizer = made.bytes_fallback(normalizers.Replace(" ", "▁"))
    made.train(tokenizer, ["<pad>", "<eos>", "<bos>", "<unk>"])
    tokenizer.add_tokens([AddedToken(piece, normalized=False) for piece in PIECES])
    made.save(tokenizer, directory, bos="<bos>")
    made.settings(directory, None, bos="<bos>", eos="<eos>", pad="<pad>", unk="<unk>")


@pytest.mark.parametrize("write", [sentencepiece, json])
def test_locations_are_tokens_in_prompts_and_in_answers(write, tmp_path):
    write(tmp_path)
    tokenizer = Tokenizer.open(tmp_path)
    prompt = RowEncoder(tokenizer, Written(detect.prefix, detect.suffix), 256)
    example = prompt(ROW, PLACE)
    learnt = example.tokens[example.scored]
    locations = [tokenizer.id(piece) for piece in re.findall("<loc....>", SUFFIX)]
    held = [number for number in learnt.tolist() if number in set(map(tokenizer.id, PIECES))]
    assert held == locations and learnt[0] == locations[0] and learnt[-1] == tokenizer.eos
    assert tokenizer.decode(learnt.tolist(), continues=True) == SUFFIX
    assert prompt.prompt({"objects": "cat"}, PLACE)  # and the same prefix alone
