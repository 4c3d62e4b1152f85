"""What `show` makes of values: escaped, complete, and refused where nothing fits."""

import re
import types
from xml.etree import ElementTree

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxtune
from jaxtune import quant
from jaxtune.cli.notebook import MOST_LINES
from jaxtune.config import load as configs
from jaxtune.config.schema import FIELDS, SECTIONS
from jaxtune.data.batches import collate, split
from jaxtune.data.examples import Example
from jaxtune.data.images import Pictures
from jaxtune.decoding.text import Answer
from jaxtune.display.errors import UserError

HOSTILE = "<script>\x1b[31m&"
ESCAPED = "&lt;script&gt;\\x1b[31m&amp;"
VARIABLES = {
    "params": {
        "layers": {
            "attn": {name: {"w": np.zeros((2, 64, 8), np.float32)} for name in "qk"},
            "norm": {"scale": np.zeros((2, 64), np.float16)},
        },
        "embed": {"w": np.zeros((10, 64), jnp.bfloat16)},
    }
}


class Tokenizer:
    """Spells the token n as `n,`."""

    def decode(self, ids, *, continues=False, special=False):
        assert special
        return "".join(f"{number}," for number in ids)


class Spelled(Tokenizer):
    def decode(self, ids, **options):
        return HOSTILE * len(ids)


def example(first: int, prompt: int, completion: int, place: str = "a.csv:1") -> Example:
    tokens = np.arange(first, first + prompt + completion, dtype=np.int32)
    return Example(tokens, np.arange(len(tokens)) >= prompt, None, place)


def spans(page: str) -> list[tuple[str, str, str]]:
    """The marked texts in the lines of a page, with their kinds and tooltips; no legend."""
    lines = re.findall(r"<pre>(.*?)</pre>", page, re.DOTALL)
    found = r'<span class="(\w+)" style="[^"]*" title="([^"]*)">(.*?)</span>'
    return re.findall(found, "".join(lines), re.DOTALL)


def page(value, *given, **options) -> str:
    """The HTML, which has no open or crossed element; `<br>` and the like are not used."""
    text = jaxtune.show(value, *given, **options)._repr_html_()
    ElementTree.fromstring(re.sub("(<details) open>", r"\1>", text))
    return text


def rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_leaves_have_shapes_dtypes_and_sizes():
    text = repr(jaxtune.show(VARIABLES))
    title = "dict: 4 leaves, 2,816 parameters, 9.50 KiB"
    assert text.splitlines()[0] == title
    found = [" ".join(row) for row in rows(text)]
    assert "params/layers/attn/q/w 2 × 64 × 8 float32 1,024 4.00 KiB" in found
    assert "params/embed/w 10 × 64 bfloat16 640 1.25 KiB" in found
    assert found[-1] == "total 2,816 9.50 KiB"
    found = page(VARIABLES)
    titles = re.findall("<summary>(.*?)</summary>", found)
    assert titles == [
        title,
        "params: 4 leaves, 2,816 parameters, 9.50 KiB",
        "layers: 3 leaves, 2,176 parameters, 8.25 KiB",
        "attn: 2 leaves, 2,048 parameters, 8.00 KiB",
    ]
    assert found.count("<details open>") == 4
    for name in ("embed/w", "norm/scale", "q/w", "k/w"):
        assert f"<td>{name}</td>" in found


def test_quantised_leaves_have_their_kind_and_true_size():
    held = quant.quantize(np.ones((2, 64, 8), np.float32), "nf4")
    text = repr(jaxtune.show({"w": held}))
    assert " ".join(rows(text)[2]) == "w 2 × 64 × 8 nf4 1,024 576 B"
    assert quant.nbytes((2, 64, 8), "nf4") == 576


def test_leaves_are_not_read_and_random_keys_have_a_size():
    shapes = jax.eval_shape(lambda: {"a": jnp.zeros((3, 2)), "key": jax.random.key(0)})
    found = [" ".join(row) for row in rows(repr(jaxtune.show(shapes)))]
    assert found[2:4] == ["a 3 × 2 float32 6 24 B", "key scalar key<fry> 1 8 B"]


def test_large_groups_are_closed():
    found = page({"a": {"b": {str(n): np.zeros(1) for n in range(20)}, "c": np.zeros(1)}})
    assert found.count("<details open>") == 2 and found.count("<details>") == 1


def test_a_state_shows_what_trains():
    weights = jax.tree.map(jnp.asarray, VARIABLES)
    adapted = jaxtune.add_lora(
        weights, targets=["layers/attn/q/w"], rank=2, alpha=4, key=jax.random.key(0)
    )
    state = jaxtune.TrainState.create(adapted, optimizer=jaxtune.optimizer("adamw"))
    text = repr(jaxtune.show(state))
    training = [row[0] for row in rows(text)[2:] if row[-1] == "trains"]
    assert training == ["lora/layers/attn/q/w/a", "lora/layers/attn/q/w/b"]
    assert "288 parameters train (9.27%)" in text and "optimiser state 2.25 KiB" in text
    found = page(state)
    assert found.count('<tr style="font-weight:600">') == 2 and found.count(">trains</td>") == 2


def test_a_config_shows_what_differs():
    config = configs.parse(
        {"model": {"path": "base"}, "data": {"source": f"{HOSTILE[:8]}.jsonl"}, "steps": 3}
    )
    display = jaxtune.show(config)
    assert rows(repr(display))[2:] == [
        ["steps", "3", "None"],
        ["model.path", "'base'", "''"],
        ["data.source", "'<script>.jsonl'", "''"],
    ]
    found = page(config)
    assert "<script>" not in found and "&#x27;&lt;script&gt;.jsonl&#x27;" in found
    assert found.count('<tr style="font-weight:600">') == 3
    assert found.count("<summary>") == 2 + len(SECTIONS) and found.count("<details open>") == 4
    assert len(re.findall("<tr", found)) == len(FIELDS) + 1 + len(SECTIONS)


def test_tokens_of_a_batch_are_marked_by_role():
    batch = collate([[example(10, 2, 3)], [example(50, 1, 1)]], shape=(2, 6, 4))
    assert spans(page(batch, Tokenizer())) == [
        ("prefix", "2 tokens, positions 0 to 1", "10,11,"),
        ("scored", "3 tokens, positions 2 to 4, weight 1", "12,13,14,"),
        ("padding", "1 token, position 5", "1 token of padding"),
        ("prefix", "1 token, position 0", "50,"),
        ("scored", "1 token, position 1, weight 1", "51,"),
        ("padding", "4 tokens, positions 2 to 5", "4 tokens of padding"),
    ]
    assert ">prompt</span>" in page(batch, Tokenizer())
    text = repr(jaxtune.show(batch, Tokenizer()))
    assert text.splitlines()[:4] == [
        "Batch: 2 lines of 6 tokens",
        "line 1 · 5 tokens, 3 scored",
        "  prompt    10,11,",
        "  scored    12,13,14,",
    ]


def test_weights_are_told_where_they_differ():
    batch = collate([[example(10, 2, 4)]], shape=(1, 6, 4))
    batch.weights[0] = [0.5, 0.5, 0, 2]
    assert spans(page(batch, Tokenizer()))[1:] == [
        ("scored", "2 tokens, positions 2 to 3, weight 0.5", "12,13,"),
        ("unscored", "1 token, position 4", "14,"),
        ("scored", "1 token, position 5, weight 2", "15,"),
    ]


def test_packed_examples_stand_apart():
    batch = collate([[example(10, 1, 2), example(20, 2, 1)]], shape=(1, 8, 4))
    found = page(batch, Tokenizer())
    assert found.count("<section>") == 1 and found.count("<pre>") == 3
    assert re.findall("<small>(.*?)</small>", found) == [
        "line 1 · 3 tokens, 2 scored",
        "line 1 · 3 tokens, 1 scored",
        "line 1 · 2 tokens",
    ]
    assert [text for kind, _, text in spans(found) if kind == "prefix"] == ["10,", "20,21,"]


def test_micro_batches_have_groups():
    lines = [[example(10 * number, 1, 2)] for number in range(1, 5)]
    batch = collate(lines, shape=(4, 3, 2))
    plain, parted = (page(each, Tokenizer()) for each in (batch, split(batch, 2)))
    assert "micro-batch" not in plain and "Batch: 4 lines of 3 tokens in 2 micro-batches" in parted
    first, second = parted.split("<summary>micro-batch 2</summary>")
    assert [text for kind, _, text in spans(first) if kind == "prefix"] == ["10,", "20,"]
    assert [text for kind, _, text in spans(second) if kind == "prefix"] == ["30,", "40,"]
    assert spans(plain) == spans(parted)
    assert spans(page(jax.tree.map(jnp.asarray, split(batch, 2)), Tokenizer())) == spans(plain)


def test_long_batches_are_cut_and_bare_ones_get_defaults():
    batch = collate([[example(5, 1, 1)]] * (MOST_LINES + 2), shape=(MOST_LINES + 2, 2, 1))
    bare = types.SimpleNamespace(
        tokens=batch.tokens, where=batch.where, targets=batch.targets, weights=batch.weights
    )
    assert page(bare, Tokenizer()) == page(batch, Tokenizer())
    assert page(batch, Tokenizer()).count("<section>") == MOST_LINES
    assert repr(jaxtune.show(batch, Tokenizer())).endswith("… and 2 more lines")


def test_texts_of_tokens_and_places_are_escaped():
    found = page(example(1, 1, 1, place=HOSTILE), Spelled())
    assert "<script>" not in found and "\x1b" not in found
    assert spans(found)[0][2] == ESCAPED and f"scored · {ESCAPED}</small>" in found
    text = repr(jaxtune.show(example(1, 1, 1, place=HOSTILE), Spelled()))
    assert "\x1b" not in text and "<script>\\x1b[31m&" in text


def test_examples_are_lines_of_a_batch():
    examples = [example(10, 1, 1, "a.csv:2"), example(20, 2, 2, "a.csv:3")]
    found = page(examples, Tokenizer())
    assert "Batch: 2 lines of 4 tokens" in found and "a.csv:3" in found
    assert spans(page(examples[1], Tokenizer())) == [
        ("prefix", "2 tokens, positions 0 to 1", "20,21,"),
        ("scored", "2 tokens, positions 2 to 3, weight 1", "22,23,"),
    ]


def test_pictures_stand_for_their_placeholders():
    given = Pictures(size=2, tokens=3, token=7)
    tokens = np.array([7, 7, 7, 20, 21], np.int32)
    pictured = Example(tokens, np.arange(5) == 4, None, "a.csv:1")
    batch = collate([[pictured]], shape=(1, 5, 1))
    kinds = [("picture", "picture: 3 tokens"), ("prefix", "20,"), ("scored", "21,")]
    for images in (None, np.zeros((1, 1, 2, 2, 3), np.float32)):
        found = page_with_images(batch.replace(images=images), given)
        assert [(kind, text) for kind, _, text in spans(found)] == kinds
        assert found.count("<img ") == (0 if images is None else 1)


def page_with_images(batch, given) -> str:
    return jaxtune.show(batch, Tokenizer(), pictures=given)._repr_html_()


def test_answers_are_a_table():
    answers = [
        Answer(f"{HOSTILE}\nend", 5, -1.25, True, (("a", 0.75), (HOSTILE, 0.25))),
        Answer("cut", 48, -9.0, False),
    ]
    found = page(answers)
    assert "<script>" not in found and f"{ESCAPED}\nend" in found
    assert "-1.250" in found and "75.0%" in found and "no: at the token limit" in found
    lines = repr(jaxtune.show(answers)).splitlines()
    assert lines[0] == "2 answers" and len(lines) == 4
    assert page(answers[0]).count("<tr>") == 2
    assert "next tokens" not in page(answers[1:])


def test_results_are_a_table():
    results = {
        "loss": jnp.float32(0.125),
        "memory": {"bytes": 12_345, "of": HOSTILE},
        "interval": [0.5, np.float64(1.5)],
        "stopped_early": False,
        "eval_loss": None,
    }
    display = jaxtune.show(results)
    assert rows(repr(display))[2:] == [
        ["loss", "0.125"],
        ["memory.bytes", "12,345"],
        ["memory.of", r"<script>\x1b[31m&"],
        ["interval", "0.5,", "1.5"],
        ["stopped_early", "False"],
        ["eval_loss", "None"],
    ]
    assert f"{ESCAPED}</td>" in page(results)


@pytest.mark.parametrize(
    "value, message",
    [
        (
            "text",
            "a value of type str: it is no array of numbers but 'text'; expected variables",
        ),
        (3, "cannot show a value of type int"),
        (None, "cannot show a value of type NoneType without arrays: expected variables"),
        ([], "cannot show a value of type list without arrays"),
        ({"a": {"b": object()}}, "the leaf a/b is no array of numbers but <object"),
        ({"a": np.array(["x"])}, "the leaf a is no array of numbers"),
        ([Answer("a", 1, 0.0, True), "text"], "cannot show a value of type list"),
    ],
)
def test_other_values_are_refused(value, message):
    with pytest.raises(UserError, match=re.escape(message)):
        jaxtune.show(value)


def test_batches_that_are_none_are_refused():
    batch = collate([[example(10, 1, 1)]], shape=(1, 2, 1))
    with pytest.raises(UserError, match=r"needs its tokenizer: jaxtune\.show\(batch, "):
        jaxtune.show(batch)
    with pytest.raises(UserError, match=r"found tokens \(2,\) and where \(1, 1\)"):
        jaxtune.show(batch.replace(tokens=batch.tokens[0]), Tokenizer())
