"""What a person is shown against what the step sees."""

import base64
import html
import io
import re

import numpy as np
import pytest
from PIL import Image

from jaxtune.cli.preview import render
from jaxtune.data import marked
from jaxtune.data.examples import Chat, RowEncoder, columns
from jaxtune.data.images import Pictures
from jaxtune.data.loader import Loader
from jaxtune.data.sources import open_source
from jaxtune.data.survey import survey
from jaxtune.display import pictures

ROWS = [
    {"prefix": "Describe: <b>sea</b>\nColors:", "suffix": ' ["#aabbcc"]'},
    {"prefix": "short", "suffix": " é😀"},
    {"prefix": "third", "suffix": " \x1b[31mred"},
]


@pytest.fixture
def shown(write, tokenizer):
    def make(kind="gemma", rows=ROWS, form=None, **options):
        source = open_source(write("a.jsonl", rows))
        prompt = RowEncoder(tokenizer(kind), form or columns(), 96)
        found = survey(source, prompt)
        step = next(Loader(source, prompt, found, batch=4, workers=0, **options))
        return step.batch, tokenizer(kind), step.places, found

    return make


@pytest.mark.parametrize("kind", ["gemma", "llama", "sentencepiece_spaced", "phi"])
@pytest.mark.parametrize("packing", [False, True])
def test_runs_tell_what_a_batch_holds(shown, kind, packing):
    batch, ours, places, found = shown(kind, packing=packing)
    text = render.text(batch, ours, places, found)
    runs = re.findall(r"^  (\w.{9})(.*(?:\n {12}.*)*)", text, re.M)
    texts = {name.strip(): [run for kind, run in runs if kind == name] for name, _ in runs}
    end = ours.piece(ours.eos)
    if packing:  # the longest first
        assert len(texts["padding"]) == 4 and len(texts["scored"]) == 3
    assert texts["scored"][0] == f' ["#aabbcc"]{end}' and texts["scored"][1] == f" é😀{end}"
    assert texts["prefix"][0].endswith("<b>sea</b>↵\n            Colors:")
    padding = sum(int(re.match(r"[\d,]+", run)[0]) for run in texts["padding"])
    assert padding == (~batch.valid).sum()
    assert "unscored" not in texts
    assert [place in text for place in places] == [True] * 3


def test_counts(shown):
    *_, found = shown()
    counts = render.counts(found)
    assert counts["rows"] == "3" and counts["tokens"] == f"{found.tokens}"
    assert counts["scored tokens"].startswith(f"{found.scored_tokens} (")
    assert counts["longest row"] == f"{found.longest} tokens"
    assert list(counts) == [
        "rows",
        "tokens",
        "scored tokens",
        "longest row",
        "rows cut to fit",
        "skipped as too long",
        "skipped as malformed",
    ]


def test_what_was_skipped_is_named(write, tokenizer):
    source = open_source(write("a.jsonl", b'{"prefix": "a", "suffix": "b"}\n{\n'))
    prompt = RowEncoder(tokenizer("gemma"), columns(), 96)
    found = survey(source, prompt, malformed="skip")
    counts = render.counts(found)
    assert (
        counts["skipped as malformed"] == "1"
        and "a.jsonl:2: not valid JSON" in counts["first skipped"]
    )


def test_turns_that_are_not_scored_are_told_from_the_prefix(shown):
    messages = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
        {"role": "assistant", "content": "four"},
    ]
    batch, ours, places, found = shown(rows=[{"messages": messages}], form=Chat())
    text = render.text(batch, ours, places, found)
    kinds = re.findall(r"^  (prefix|scored|unscored|padding) ", text, re.M)
    assert kinds[:5] == ["prefix", "scored", "unscored", "scored", "unscored"]
    assert "two<end_of_turn>" in text


def test_colours_are_for_terminals_and_data_commands_none(shown):
    batch, ours, places, found = shown()
    assert "\033" not in render.text(batch, ours, places, found)
    assert r"\x1b[31mred" in render.text(batch, ours, places)
    coloured = render.text(batch, ours, places, found, colour=True)
    assert marked.KINDS["scored"][1] + ' ["#aabbcc"]<eos>' + marked.PLAIN in coloured
    assert re.sub(r"\033\[[\d;]*m", "", coloured) == render.text(batch, ours, places, found)


def test_places_cannot_control_the_terminal(shown):
    batch, ours, places, found = shown()
    hostile = [f"\x1b[2J{place}\n" for place in places]
    assert r"\x1b[2J" in (text := render.text(batch, ours, hostile, found)) and "\x1b" not in text


def test_a_page_stands_alone(shown):
    batch, ours, places, found = shown()
    page = render.page(batch, ours, places, found, title="a <b>")
    assert page.startswith("<!doctype html>") and "<title>a &lt;b&gt;</title>" in page
    assert not re.search(r"(src|href|url|@import|<script)", page)
    assert html.escape(' ["#aabbcc"]<eos>') in page and "&lt;b&gt;sea" in page
    for kind in marked.KINDS:
        assert (f'<span class="{kind}"' in page) == (kind != "picture")  # there is none
    assert page.count('<span class="scored"') == 1 + 3  # and the legend's
    assert places[2] in page and "<td>3" in page and "\x1b" not in page
    assert render.page(batch, ours)  # nothing but the batch is needed


def test_micro_batches_are_shown_line_after_line(shown):
    batch, ours, places, _ = shown(accumulate=2)
    assert batch.tokens.shape[:2] == (2, 4)
    text = render.text(batch, ours, places)
    assert text.count(" scored · ") == 3 and "line 8 · " in text


WANTED = Pictures(size=8, tokens=6, token=99_999)
COLOURS = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0)]
PICTURED = [
    {"prefix": "caption", "suffix": " red", "image": "0.png"},
    {"prefix": "caption", "suffix": " green, then blue", "image": ["1.png", "2.png"]},
    {"prefix": "caption en the last", "suffix": " yellow", "image": "3.png"},
]


@pytest.fixture
def pictured(write, tokenizer, tmp_path):
    def make(**options):
        for number, colour in enumerate(COLOURS):
            Image.new("RGB", (8, 8), colour).save(tmp_path / f"{number}.png")
        source = open_source(write("a.jsonl", PICTURED))
        prompt = RowEncoder(tokenizer("gemma"), columns(), 96, full_prefix=True, pictures=WANTED)
        found = survey(source, prompt)
        step = next(Loader(source, prompt, found, batch=4, workers=0, **options))
        return step, (step.batch, tokenizer("gemma"), step.places, found)

    return make


def decoded(page):
    """The pictures of a page as uint8[H, W, 3], those of models first told from squares."""
    found = re.findall(r'<(img src|image href)="data:image/png;base64,([^"]+)"', page)
    pixels = [np.asarray(Image.open(io.BytesIO(base64.b64decode(each)))) for _, each in found]
    squares = [each for each, (kind, _) in zip(pixels, found, strict=True) if "href" in kind]
    return [each for each, (kind, _) in zip(pixels, found, strict=True) if "src" in kind], squares


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"packing": True}, {"accumulate": 2}])
def test_pictures_stand_beside_their_rows(pictured, options):
    step, given = pictured(**options)
    page = render.page(*given, pictures=WANTED)
    images, squares = decoded(page)
    assert squares == [] and render.SEEN not in page
    order = [int(place.split(":")[-1]) - 1 for place in step.places]
    expected = [number for row in order for number in ([0], [1, 2], [3])[row]]
    assert [image.shape for image in images] == [(8, 8, 3)] * 4
    for image, number in zip(images, expected, strict=True):
        np.testing.assert_array_equal(image, np.broadcast_to(COLOURS[number], image.shape))
    sections = page.split("<h2>")[1:]
    counts = {row: sections[[row in each for each in sections].index(True)] for row in step.places}
    for place, section in counts.items():
        assert section.count("<img ") == (2 if place.endswith(":2") else 1)
    assert page.count(">picture: 6 tokens</span>") == 2
    assert page.count(">2 pictures: 12 tokens</span>") == 1


@pytest.mark.slow
def test_what_the_step_sees_is_shown_and_not_the_file(pictured):
    step, given = pictured()
    changed = step.batch.replace(images=-step.batch.images)
    images, _ = decoded(render.page(changed, *given[1:], pictures=WANTED))
    np.testing.assert_array_equal(images[0][0, 0], [5, 255, 255])  # what is left of red


@pytest.mark.slow
def test_placeholders_are_one_run_on_the_terminal(pictured):
    _, given = pictured()
    text = render.text(*given, pictures=WANTED)
    runs = re.findall(r"^  (picture|prefix|scored)\s+(.*)$", text, re.M)
    assert runs[:3] == [
        ("picture", "6 tokens"),
        ("prefix", "<bos>caption"),
        ("scored", " red<eos>".strip()),
    ]
    assert ("picture", "2 pictures: 12 tokens") in runs and "pictures              4" in text
    coloured = render.text(*given, pictures=WANTED, colour=True)
    assert f"{marked.KINDS['picture'][1]}6 tokens{marked.PLAIN}" in coloured


@pytest.mark.slow
def test_who_sees_whom_is_drawn_of_what_is_given(pictured):
    step, given = pictured(packing=True)
    length = step.batch.tokens.shape[-1]
    nothing = np.zeros((4, length, length), bool)
    page = render.page(*given, pictures=WANTED, seen=nothing)
    _, squares = decoded(page)
    assert render.SEEN in page and len(squares) == 1  # the others are padding
    assert squares[0].shape == (pictures.SQUARE, pictures.SQUARE, 3) and (squares[0] == 255).all()
    *_, changed = decoded(render.page(*given, pictures=WANTED, seen=~nothing))
    assert (changed[0] != 255).all(-1).mean() > 0.5  # padding is almost white
