"""Pictures beside a row's text: where they are, where they stand, and rows without any."""

import re
from pathlib import Path

import numpy as np
import pytest

from jaxtune.data.errors import RowError, TooLong
from jaxtune.data.examples import columns
from jaxtune.data.images import Pictures
from tests.data import made
from tests.data.rows import PLACE, RECORD, make

SEEN = Pictures(size=8, tokens=6, token=9999)
PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0"  # as such files begin


@pytest.fixture
def beside(tmp_path):
    """The place of a row of a file that has pictures beside it."""
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(PNG)
    (tmp_path / "b.jpg").write_bytes(JPEG)
    return f"{tmp_path / 'rows.jsonl'}:7"


@pytest.mark.parametrize("kind", made.KINDS)
@pytest.mark.parametrize("images", ["b.jpg", ["b.jpg"], ["b.jpg", "pictures/a.png", "b.jpg"]])
def test_placeholders_stand_before_all_else(tokenizer, beside, tmp_path, kind, images):
    ours = tokenizer(kind)
    plain = make(ours, full_prefix=True)(RECORD, beside)
    prompt = make(ours, full_prefix=True, pictures=SEEN)
    record = {**RECORD, "image": images}
    example, asked = prompt(record, beside), prompt.prompt(record, beside)
    names = [images] if isinstance(images, str) else images
    assert example.images == tuple(str(tmp_path / name) for name in names)
    assert example.images == prompt.pictures_of(record, beside)
    before = 6 * len(names)
    assert example.tokens[:before].tolist() == [9999] * before
    assert not example.scored[:before].any() and not example.causal[:before].any()
    for name in ("tokens", "scored", "causal"):
        assert np.array_equal(getattr(example, name)[before:], getattr(plain, name))
    assert example.tokens.dtype == np.int32
    assert asked == [9999] * before + make(ours).prompt(RECORD, beside)


def test_a_picture_alone_predicts_the_first_token(tokenizer, beside):
    record = {"prefix": "", "suffix": "hello", "image": "b.jpg"}
    example = make(tokenizer("qwen"), columns(), pictures=SEEN)(record, beside)
    assert np.array_equal(example.scored, example.tokens != 9999)


def test_a_model_without_eyes_reads_no_pictures(tokenizer):
    prompt = make(tokenizer("gemma"))
    record = {**RECORD, "image": "nowhere.png"}
    assert prompt(record, PLACE).images == prompt.pictures_of(record, PLACE) == ()
    assert prompt.prompt(record, PLACE) == prompt.prompt(RECORD, PLACE)


def test_where_pictures_are(tokenizer, beside, tmp_path, monkeypatch):
    gemma = tokenizer("gemma")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    def shown(value, place=beside, **options):
        prompt = make(gemma, pictures=SEEN, image="seen", **options)
        return prompt.pictures_of({"seen": value}, place)

    inside, whole = tmp_path / "pictures", (str(tmp_path / "pictures" / "a.png"),)
    assert shown("pictures/a.png") == shown(str(inside / "a.png")) == whole
    assert shown("a.png", image_root=str(inside)) == shown("a.png", image_root="pictures") == whole
    assert shown("a.png", image_root="~/pictures") == shown("~/pictures/a.png") == whole
    assert shown("pictures/a.png", place="the prompt") == whole  # from where one is
    assert shown({"bytes": None, "path": "pictures/a.png"}) == whole
    assert shown({"bytes": PNG, "path": "nowhere.png"}) == shown([PNG]) == (PNG,)
    assert shown([PNG, {"path": "b.jpg"}]) == (PNG, str(tmp_path / "b.jpg"))


@pytest.mark.parametrize(
    "record, message",
    [
        ({}, "no picture column 'image'; the columns are 'description', 'colors'"),
        ({"image": None}, "column 'image' is empty"),
        ({"image": ""}, "column 'image' is ''; expected a picture's path, its bytes or a list of"),
        ({"image": []}, "column 'image' is an empty list"),
        ({"image": 3}, "column 'image' is 3; expected a picture's path"),
        ({"image": ["b.jpg", None]}, "column 'image' is None; expected a picture's path"),
        ({"image": {"bytes": None, "path": None}}, "column 'image' is None"),
        ({"image": "c.jpg"}, "picture {folder}/c.jpg: no such file"),
        ({"image": "pictures"}, "picture {folder}/pictures: is a directory, not a file"),
        ({"image": "a\0b"}, "cannot be read: embedded null byte"),
        ({"image": "empty.jpg"}, "picture {folder}/empty.jpg: the file is empty"),
        ({"image": "page.jpg"}, "unknown format: it begins with b'<!doctyp'; expected JPEG"),
        ({"image": b"RIFF0000WAVE"}, "the picture in the row (12 bytes): unknown format: it"),
    ],
)
def test_a_row_without_a_picture_that_can_be_opened_is_named(tokenizer, beside, record, message):
    folder = beside.rpartition("/")[0]
    (Path(folder) / "empty.jpg").touch()
    (Path(folder) / "page.jpg").write_text("<!doctype html>")
    prompt = make(tokenizer("gemma"), pictures=SEEN)
    for ask in (prompt, prompt.prompt, prompt.pictures_of):
        with pytest.raises(RowError) as caught:
            ask({**RECORD, **record}, beside)
        assert message.format(folder=folder) in str(caught.value)
        assert str(caught.value).startswith(f"{beside}: ")


@pytest.mark.parametrize("kind", ["gemma", "qwen"])  # one with BOS, one without
def test_pictures_count_where_rows_are_too_long_and_are_never_cut(tokenizer, beside, kind):
    ours = tokenizer(kind)
    record = {"prefix": "a b c d e f g h", "suffix": "i", "image": ["b.jpg", "b.jpg"]}
    whole = make(ours, columns(), pictures=SEEN)(record, beside)
    length, prefix = len(whole.tokens), int(np.argmax(whole.scored)) - 12
    message = f"the row has {length} tokens (pictures 12, prompt {prefix}, completion "
    with pytest.raises(TooLong, match=re.escape(message)):
        make(ours, columns(), length - 1, pictures=SEEN)(record, beside)
    kept = 12 + ours.adds_bos  # and the last of the prefix predicts the first that is scored
    least = kept + int(whole.scored.sum())
    cut = make(ours, columns(), least, too_long="cut_prefix", pictures=SEEN)(record, beside)
    assert len(cut.tokens) == least and cut.cut == length - least and len(cut.images) == 2
    assert np.array_equal(cut.tokens[:kept], whole.tokens[:kept])
    assert np.array_equal(cut.tokens[cut.scored], whole.tokens[whole.scored])
    with pytest.raises(TooLong, match="cutting the prompt is not enough"):
        make(ours, columns(), least - 1, too_long="cut_prefix", pictures=SEEN)(record, beside)


def test_what_a_config_says_of_pictures(tokenizer, beside):
    from jaxtune.assembly.rows import row_encoder
    from jaxtune.config import load as schema

    def prompt(pictures, **data):
        data = dict(source="a.jsonl", prefix="{description}", suffix="{colors}", **data)
        given = schema.parse(dict(model=dict(path="m"), data=data))
        length = given.batch.max_length
        return row_encoder(given.data, length, tokenizer("gemma"), pictures, "m")

    record = {**RECORD, "image": "b.jpg", "other": "a.png"}
    assert len(prompt(SEEN)(record, beside).images) == 1
    folder = f"{Path(beside).parent}/pictures"
    found = prompt(SEEN, image="other", image_root=folder)(record, beside)
    assert found.images == (f"{folder}/a.png",)
    # A model that sees may be tuned on text alone: its prefix is read in full all the same.
    blind = prompt(SEEN, image="")(record, beside)
    assert blind.images == () and not blind.causal[0]
    text = prompt(None)(record, beside)
    assert text.causal is None and np.array_equal(text.tokens, blind.tokens)
    with pytest.raises(ValueError, match=r"data.augment is set, but m takes no pictures"):
        prompt(None, augment=[("flip", 0.5)])
