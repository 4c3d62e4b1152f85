"""Fields that contradict each other stop a config."""

import re

import pytest

from jaxtune.config.fields import ConfigError
from jaxtune.config.load import parse
from tests.config.jobs import LEAST, joined, problems


@pytest.mark.parametrize(
    "more, expected",
    [
        (dict(steps=10, epochs=1), r"steps .* epochs .*: both set how long to train"),
        (
            dict(trainable=dict(kind="rules", rules=[(".*", True)], rank=4)),
            r"trainable.rank .* trainable.kind .*: rank is used only when kind is 'lora', but "
            r"kind is 'rules'; remove rank or change kind",
        ),
        (dict(trainable=dict(rules=[(".*", True)])), r"rules is used only when kind is 'rules'"),
        (dict(optim=dict(momentum=0.9)), r"momentum is used only when name is 'sgd'"),
        (dict(optim=dict(name="sgd", b2=0.9)), r"b2 is used only when name is 'adamw' or"),
        (dict(schedule=dict(decay=10)), r"decay is used only when name is 'wsd'"),
        (
            dict(schedule=dict(warmup=11), steps=10),
            r"warmup .* steps .*: found 11 steps of warmup, but the run has only 10;",
        ),
        (
            dict(schedule=dict(name="wsd", warmup=5, decay=0.6), steps=10),
            r"warmup .* schedule.decay .* steps .*: found 11 steps of warmup and decay, but .* 10;",
        ),
        (dict(schedule=dict(name="wsd", warmup=0.6, decay=0.5)), r"these shares exceed 1"),
        (
            dict(batch=dict(rows=10, accumulate=4)),
            r"10 rows cannot be split into 4 equal micro-batches",
        ),
        (
            dict(batch=dict(buckets=[64, 32])),
            r"found \[64, 32\], expected strictly ascending lengths",
        ),
        (dict(batch=dict(buckets=[64, 64, 1024])), r"expected strictly ascending lengths"),
        (dict(batch=dict(buckets=[64])), r"the last bucket is 64, but max_length is 1024"),
        (
            dict(batch=dict(buckets=[1024], packing=True)),
            r"buckets is used only when packing is False",
        ),
        (dict(mesh=dict(data=-1)), r"mesh.data \(run.py\), mesh.fsdp \(default\): only one axis"),
        (
            dict(data=dict(task="palette", messages="chat")),
            r"data.messages .* data.task .*: each defines how a row becomes text",
        ),
        (dict(data=dict(suffix="{y}", task="palette")), r"data.suffix .* data.task"),
        (dict(data=dict(turns="last")), r"data.turns is used only with data.messages"),
        (dict(data=dict(columns=dict(a="b"))), r"data.columns is used only with data.task"),
        (
            dict(data=dict(image="", image_root="pictures")),
            r"data.image_root .* data.image .*: no pictures are read without data.image; set it",
        ),
        (dict(data=dict(image="", augment=[["flip", 0.5]])), r"or remove data.augment"),
        (dict(data=dict(augment=[["crop", 0]])), r"found 0 for crop, expected a share above 0 and"),
        (
            dict(batch=dict(rows=1_048_576, max_length=16_777_216)),
            r"batch.rows .* batch.max_length .*: 1,048,576 rows of up to 16,777,216 tokens are m",
        ),
        (dict(generate=dict(temperature=1e-9)), r"found 1e-09, expected at least 0.001, or 0 for"),
        (
            dict(data=dict(augment=[["flip", 1], ["flip", 1]])),
            r"flip, flip; expected each augmentation once",
        ),
        (dict(eval=dict(holdout=9, split="val")), r"set only one of these"),
        (dict(eval=dict(split="train")), r"eval.split .*: these are the training rows"),
        (dict(eval=dict(source="rows.jsonl")), r"eval.source .*: these are the training rows"),
        (dict(eval=dict(patience=3)), r"eval.patience .*: there are no held-out rows"),
    ],
)
def test_fields_at_odds_stop(more, expected):
    (line,) = problems(more)
    assert re.search(expected, line), line


def test_a_schedule_may_fill_all_steps():
    fits = dict(schedule=dict(name="wsd", warmup=4, decay=0.6), steps=10)
    assert parse(joined(LEAST, fits)).steps == 10


@pytest.mark.parametrize(
    ("values", "keys"),
    [
        (dict(generate=dict(top_k=3)), "generate.top_k"),
        (dict(generate=dict(stops=[""])), "generate.stops"),
        (dict(model=dict(quant="nf4"), trainable=dict(kind="full")), "trainable.kind"),
        (dict(model=dict(quant="nf4"), trainable=dict(init="pissa")), "trainable.init"),
        (dict(model=dict(quant=[(".*", "nf5")])), "model.quant"),
    ],
)
def test_what_answers_and_quantised_bases_cannot_do(values, keys):
    given = dict(data=dict(source="x.jsonl"), trainable=dict(targets="attention")) | values
    given["model"] = dict(path="base") | given.get("model", {})
    with pytest.raises(ConfigError, match=re.escape(keys)):
        parse(given)
