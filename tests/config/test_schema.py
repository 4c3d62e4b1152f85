"""Every field of the schema has a default of its type, and offers what there is."""

from typing import get_args

from jaxtune.config import fields, schema
from jaxtune.config.load import parse
from tests.config.jobs import LEAST, joined


def test_an_amount_is_a_count_or_a_share():
    run = parse(joined(LEAST, dict(schedule=dict(warmup=100), eval=dict(holdout=0.1))))
    assert type(run.schedule.warmup) is int and type(run.eval.holdout) is float
    assert schema.counted(run.schedule.warmup, 500) == 100
    # As transformers rounds warmup_ratio.
    assert [schema.counted(0.06, steps) for steps in (500, 501, 10)] == [30, 31, 1]


def test_every_default_is_of_its_type():
    for key, field in schema.FIELDS.items():
        fitted = fields.fit(field.default, field.type, fields.conform)
        assert fitted == field.default and type(fitted) is type(field.default), key
        assert fields.within(fitted, field.metadata), key


def test_what_can_be_chosen_is_what_there_is():
    from jaxtune import sharding
    from jaxtune.adapters import lora
    from jaxtune.checkpoint import dtypes
    from jaxtune.data import batches, chat, errors, examples, images
    from jaxtune.models import attention
    from jaxtune.training import optim

    def choices(key):
        kind = schema.FIELDS[key].type
        alternatives = get_args(kind)
        return {each for part in alternatives for each in get_args(part) or (part,)}

    assert choices("trainable.variant") == set(lora.VARIANTS)
    assert choices("trainable.init") == set(lora.INITS)
    assert choices("trainable.targets") >= set(lora.TARGETS)
    assert choices("optim.name") == set(optim.DIRECTIONS)
    assert choices("schedule.name") == set(optim.SCHEDULES)
    assert choices("model.attention") == set(attention.IMPLEMENTATIONS)
    assert choices("model.dtype") == {"auto", *dtypes.DTYPES}
    assert tuple(vars(schema.Mesh())) == sharding.AXES
    assert choices("data.bad_rows") == set(errors.POLICIES)
    assert choices("data.too_long") == set(examples.TOO_LONG)
    assert choices("data.turns") == set(chat.TURNS)
    assert choices("batch.weighting") == set(batches.WEIGHTS)
    names, _ = get_args(get_args(schema.FIELDS["data.augment"].type)[0])
    assert get_args(names) == tuple(images.AUGMENTATIONS)
