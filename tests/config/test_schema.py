"""Config files become a typed `Config`, and what is wrong with one is said all at once."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from jaxtune.config import checks, fields, schema
from jaxtune.config.fields import ConfigError
from jaxtune.config.load import describe, difference, load, parse, resolved

PALETTE = '''
"""Palette: the description of a theme -> four colours."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            model=dict(path="google/gemma-3-270m", dtype="float32"),
            data=dict(source="data/palettes.csv", task="palette"),
            trainable=dict(rank=16, alpha=32, dropout=0.05, targets="all-linear"),
            optim=dict(name="adamw", lr=5e-5, weight_decay=0.01, clip_norm=1.0),
            schedule=dict(name="linear", warmup=0),
            batch=dict(rows=16, accumulate=16),
            epochs=3,
            eval=dict(holdout=0.1, every=100),
            checkpoint=dict(every=200, keep=2, best=True),
            log=dict(every=10, tensorboard=True),
        )
    )
'''
# The other jobs, as what their files return.
TOTTO = dict(
    model=dict(path="google/gemma-3-270m-it"),
    data=dict(source="data/totto/train.jsonl", rows=8000),
    trainable=dict(rank=8, alpha=16, dropout=0.05),
    optim=dict(lr=5e-5),
    schedule=dict(name="cosine", warmup=0.06),
    batch=dict(rows=16, accumulate=16, max_length=1024),
    epochs=1,
    eval=dict(source="data/totto/validation.jsonl", rows=500),
)
PALIGEMMA = dict(
    model=dict(path="paligemma-3b-pt-224.f16.npz", dtype="float16"),
    data=dict(source="data/captions.jsonl", tokenizer="paligemma_tokenizer.model"),
    trainable=dict(kind="attention"),
    optim=dict(name="sgd", lr=0.03),
    schedule=dict(name="cosine", warmup=0.1),
    batch=dict(rows=8, max_length=128, weighting="example"),
    mesh=dict(fsdp=-1),
    steps=64,
)
PRICE = dict(
    model=dict(path="meta-llama/Llama-3.2-3B"),
    data=dict(source="ed-donner/items_prompts_lite", prefix="{prompt}", suffix="{completion}"),
    trainable=dict(rank=32, alpha=64, dropout=0.1, targets="attention"),
    optim=dict(name="adamw", lr=1e-4),
    schedule=dict(name="wsd", warmup=0.03, decay=0.2),
    batch=dict(rows=32, accumulate=2, max_length=256, packing=True),
    epochs=1,
    eval=dict(split="val", rows=500, every=100, patience=5),
    log=dict(every=5, wandb="price"),
)
LEAST = dict(model=dict(path="base"), data=dict(source="rows.jsonl"))


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a config file, and makes its directory the current one."""
    monkeypatch.chdir(tmp_path)

    def written(text: str | bytes, name: str = "run.py") -> str:
        Path(name).write_bytes(text.encode() if isinstance(text, str) else text)
        return name

    return written


@pytest.fixture
def least(write):
    """The name of a file with what must be given, and no more."""
    return write(f"def get_config():\n    return {LEAST!r}\n")


def joined(values: dict, more: dict) -> dict:
    """Sections of `more` put into those of `values`."""
    return values | {
        name: {**values.get(name, {}), **each} if isinstance(each, dict) else each
        for name, each in more.items()
    }


def refusal(function, *arguments) -> str:
    with pytest.raises(ConfigError) as caught:
        function(*arguments)
    return str(caught.value)


def problems(more: dict, *overrides: str) -> list[str]:
    """The lines of problems with the least config and what more it is given."""
    settings = [
        *schema.SCHEMA.settings(joined(LEAST, more), "run.py"),
        *map(fields.override, overrides),
    ]
    header, *lines = refusal(schema.SCHEMA.assembled, settings, checks.CHECKS).split("\n  ")
    count = "a problem" if len(lines) == 1 else f"{len(lines)} problems"
    assert header == f"the config has {count}:"
    return lines


def test_the_palette_job_is_a_dozen_lines(write):
    run = load(write(PALETTE, "palette.py"))
    assert run == parse(
        dict(
            model=dict(path="google/gemma-3-270m", dtype="float32"),
            data=dict(source="data/palettes.csv", task="palette"),
            trainable=dict(rank=16, alpha=32.0, dropout=0.05),
            optim=dict(lr=5e-5, weight_decay=0.01),
            batch=dict(rows=16, accumulate=16),
            epochs=3.0,
            eval=dict(holdout=0.1),
            log=dict(tensorboard=True),
        )
    )
    assert run.optim.lr == 5e-5 and run.trainable.rank == 16 and run.epochs == 3
    assert type(run.epochs) is float and type(run.trainable.alpha) is float
    with pytest.raises(dataclasses.FrozenInstanceError):
        run.steps = 3


@pytest.mark.parametrize("job", [TOTTO, PALIGEMMA, PRICE])
def test_the_other_jobs_are_a_dozen_lines(job):
    assert len(job) <= 12
    run = parse(job)
    for section, values in job.items():
        for name, value in values.items() if isinstance(values, dict) else ():
            assert getattr(getattr(run, section), name) == value


def test_overrides_are_read_by_the_type_of_their_field(least):
    typed = {
        "optim.lr=3e-4": 3e-4,
        "optim.weight_decay=1": 1.0,
        "optim.clip_norm=null": None,
        "optim.rates=[('lora/.*/b', 16), ['.*', 0.5]]": (("lora/.*/b", 16.0), (".*", 0.5)),
        "steps=70": 70,
        "eval.every=None": None,
        "eval.source=['a.csv', 'b.csv']": ("a.csv", "b.csv"),
        "data.source=[ab]*.jsonl": "[ab]*.jsonl",
        "data.shuffle=False": False,
        "data.rows=1_000": 1000,
        "data.task=palette": "palette",
        "data.augment=[('crop', 0.8), ('flip', 1)]": (("crop", 0.8), ("flip", 1.0)),
        "data.columns={'theme': 'text', 'colors': 'c'}": (("colors", "c"), ("theme", "text")),
        "log.tensorboard=true": True,
        "log.wandb=null": "null",
        "schedule.name=cosine": "cosine",
        "schedule.warmup=0.06": 0.06,
        "batch.buckets=64,1024": (64, 1024),
        "trainable.targets=['(.*/)?layers/attn/q/w']": ("(.*/)?layers/attn/q/w",),
        "model.path=a=b": "a=b",
        "mesh.tensor=-1": -1,
        "mesh.fsdp=2": 2,
    }
    run = load(least, [f"--config.{text}" for text in typed])
    for text, value in typed.items():
        found = fields.at(run, text.partition("=")[0])
        assert (found, type(found)) == (value, type(value)), text


def test_a_dictionary_may_hold_config_dicts(write):
    text = "from ml_collections import ConfigDict\n"
    text += "def get_config():\n    return dict(model=ConfigDict(dict(path='a')), data={})\n"
    run = load(write(text.format("dict(source='b')")))
    assert (run.model.path, run.data.source) == ("a", "b")


def test_the_last_override_counts_and_goes_before_the_file(least):
    assert load(least).seed == 0
    overrides = ["--config.model.path=other", "--config.seed=1", "--config.seed=2"]
    run = load(least, overrides)
    assert (run.model.path, run.seed) == ("other", 2)


def test_an_amount_is_a_count_or_a_share():
    run = parse(joined(LEAST, dict(schedule=dict(warmup=100), eval=dict(holdout=0.1))))
    assert type(run.schedule.warmup) is int and type(run.eval.holdout) is float
    assert schema.counted(run.schedule.warmup, 500) == 100
    # As transformers rounds warmup_ratio.
    assert [schema.counted(0.06, steps) for steps in (500, 501, 10)] == [30, 31, 1]


def test_numpy_numbers_and_paths_are_taken():
    more = dict(optim=dict(lr=np.float32(0.5)), steps=np.int64(7), model=dict(path=Path("a/b")))
    run = parse(joined(LEAST, more))
    assert json.dumps(resolved(run))
    assert (run.optim.lr, run.steps, run.model.path) == (0.5, 7, "a/b")


@pytest.mark.parametrize(
    "key, nearest",
    [
        ("optim.lrr", "optim.lr"),
        ("optim.learning_rate", "optim.lr"),
        ("lr", "optim.lr"),
        ("optimizer", "optim.name"),
        ("Optim", "optim"),
        ("scheduel", "schedule"),
        ("warmup_ratio", "schedule.warmup"),
        ("optim.warmup", "schedule.warmup"),
        ("num_train_epochs", "epochs"),
        ("batch_size", "batch.rows"),
        ("batch.max_len", "batch.max_length"),
        ("gradient_accumulation_steps", "batch.accumulate"),
        ("trainable.r", "trainable.rank"),
        ("lora_alpha", "trainable.alpha"),
        ("trainable.target_modules", "trainable.targets"),
        ("max_grad_norm", "optim.clip_norm"),
        ("model.gradient_checkpointing", "model.remat"),
        ("gradient_checkpointing", "model.remat"),
        ("eval.step", "eval.every"),
        ("mesh.model", "mesh.tensor"),
        ("optimizer.lr", "optim.lr"),
    ],
)
def test_an_unknown_key_stops_with_the_nearest(key, nearest):
    problem = f"no such field; the nearest is {nearest}"
    assert problems({}, f"--config.{key}=1") == [f"{key} (command line): {problem}"]
    section, _, name = key.rpartition(".")
    if section in schema.SECTIONS:
        assert problems({section: {name: 1}}) == [f"{key} (run.py): {problem}"]


@pytest.mark.parametrize(
    "key, value, expected",
    [
        ("optim.lr", "3e-4", "number ≥ 0"),
        ("optim.lr", -1, "number ≥ 0"),
        ("optim.lr", True, "number ≥ 0"),
        ("optim.lr", float("nan"), "number ≥ 0"),
        ("optim.lr", None, "number ≥ 0"),
        ("optim.lr", float("inf"), "number ≥ 0"),
        ("optim.lr", 10**400, "number ≥ 0"),
        ("optim.b1", 1, "number ≥ 0 and < 1"),
        ("optim.epsilon", 0, "number > 0"),
        ("optim.clip_norm", float("inf"), "number > 0 | None"),
        ("optim.name", "adam", "adamw | adamw8bit | sgd | adafactor | lion"),
        ("optim.rates", {".*": 1}, "[(pattern, number ≥ 0), …]"),
        ("optim.rates", [(".*", -1)], "[(pattern, number ≥ 0), …]"),
        ("optim.decays", [(".*", 1, 2)], "[(pattern, number ≥ 0), …]"),
        ("trainable.targets", "mlp", "all-linear | attention | [pattern, …]"),
        ("trainable.rules", [(".*", 1)], "[(pattern, True | False), …]"),
        ("trainable.rank", 0, "whole number ≥ 1"),
        ("batch.rows", 16.0, "whole number ≥ 1"),
        ("batch.rows", True, "whole number ≥ 1"),
        ("batch.buckets", 64, "[whole number ≥ 1, …]"),
        ("batch.buckets", [64, 0], "[whole number ≥ 1, …]"),
        ("batch.packing", 1, "True | False"),
        ("steps", 10.0, "whole number ≥ 1 | None"),
        ("epochs", 0, "number > 0 | None"),
        ("schedule.warmup", 1.0, "whole number | share below 1"),
        ("schedule.warmup", -1, "whole number | share below 1"),
        ("data.source", ["a", 1], "[text, …] | text"),
        ("data.columns", {"a": 1}, "[(text, text), …]"),
        ("data.columns", {"a": "b", 1: "c"}, "[(text, text), …]"),
        ("model.path", 3, "text"),
        ("mesh.data", -2, "whole number ≥ -1"),
        ("model.dtype", ["auto"], "auto | float32 | bfloat16 | float16"),
    ],
)
def test_a_value_of_another_type_or_range_stops(key, value, expected):
    section, _, name = key.rpartition(".")
    found = problems({section: {name: value}} if section else {name: value})
    assert found == [f"{key} (run.py): found {fields.shown(value)}, expected {expected}"]


@pytest.mark.parametrize(
    "override, problem",
    [
        ("optim.lr=fast", "found 'fast', expected number ≥ 0"),
        ("optim.lr=", "found '', expected number ≥ 0"),
        ("optim.lr=nan", "found 'nan', expected number ≥ 0"),
        ("steps=1e3", "found '1e3', expected whole number ≥ 1 | None"),
        ("batch.rows=16.0", "found '16.0', expected whole number ≥ 1"),
        ("batch.rows=null", "found 'null', expected whole number ≥ 1"),
        ("batch.buckets=64", "found '64', expected [whole number ≥ 1, …]"),
        ("optim.rates={[]: 1}", "found '{[]: 1}', expected [(pattern, number ≥ 0), …]"),
        ("batch.buckets=[64", "found '[64', expected [whole number ≥ 1, …]"),
        ("data.shuffle=yes", "found 'yes', expected True | False"),
        ("data.shuffle=1", "found '1', expected True | False"),
        ("data.shuffle", "found no value, expected --config.data.shuffle=VALUE"),
        ("model.dtype=null", "found 'null', expected auto | float32 | bfloat16 | float16"),
        ("=3", "no such field; the nearest is optim.lr"),
        ("optim=sgd", "found 'sgd' for a section, expected its fields, such as optim.name"),
    ],
)
def test_an_override_that_cannot_be_read_stops(override, problem):
    key = override.partition("=")[0] or "--config.=3"
    assert problems({}, f"--config.{override}") == [f"{key} (command line): {problem}"]


def test_a_pattern_that_is_none_is_explained():
    (line,) = problems(dict(trainable=dict(targets=["q/w", "("])))
    assert "'(' is no regular expression: missing )" in line
    assert line.endswith("expected all-linear | attention | [pattern, …]")


def test_a_long_value_is_cut():
    (line,) = problems(dict(optim=dict(lr="x" * 1000)))
    assert len(line) < 150 and "…" in line


def test_all_problems_are_listed_with_where_they_come_from():
    more = dict(optim=dict(lr="x", lrr=1), batch=3, steps=5, epochs=1)
    assert problems(more, "--config.steps=6", "--config.seed=-1", "--config.mesh.tensor=0") == [
        "optim.lr (run.py): found 'x', expected number ≥ 0",
        "optim.lrr (run.py): no such field; the nearest is optim.lr",
        "batch (run.py): found 3 for a section, expected its fields, such as batch.rows",
        "seed (command line): found '-1', expected whole number ≥ 0",
        "steps (command line), epochs (run.py): both say how long to train; leave one out, or set "
        "it to None",
        "mesh.tensor (command line): found 0, expected 1 or more, or -1 for all devices left",
    ]


def test_what_a_run_needs_is_asked_for():
    found = refusal(parse, {})
    assert "the config has 2 problems:\n  model.path (default): is empty, and a run" in found
    assert "\n  data.source (default): is empty" in found
    assert problems(dict(trainable=dict(kind="rules")))[0].startswith("trainable.rules (default)")
    assert problems(dict(trainable=dict(targets=[])))[0].startswith("trainable.targets (run.py)")


@pytest.mark.parametrize(
    "more, expected",
    [
        (dict(steps=10, epochs=1), r"steps .* epochs .*: both say how long"),
        (
            dict(trainable=dict(kind="rules", rules=[(".*", True)], rank=4)),
            r"trainable.rank .* trainable.kind .*: rank is read only where kind is 'lora', and "
            r"kind is 'rules'; leave out rank or change kind",
        ),
        (dict(trainable=dict(rules=[(".*", True)])), r"rules is read only where kind is 'rules'"),
        (dict(optim=dict(momentum=0.9)), r"momentum is read only where name is 'sgd'"),
        (dict(optim=dict(name="sgd", b2=0.9)), r"b2 is read only where name is 'adamw' or"),
        (dict(schedule=dict(decay=10)), r"decay is read only where name is 'wsd'"),
        (
            dict(schedule=dict(warmup=11), steps=10),
            r"warmup .* steps .*: found 11 steps .* only 10",
        ),
        (
            dict(schedule=dict(name="wsd", warmup=5, decay=0.6), steps=10),
            r"warmup .* schedule.decay .* steps .*: found 11 steps .* only 10",
        ),
        (dict(schedule=dict(name="wsd", warmup=0.6, decay=0.5)), r"these shares are above 1"),
        (dict(batch=dict(rows=10, accumulate=4)), r"10 rows make no 4 equal parts"),
        (dict(batch=dict(buckets=[64, 32])), r"found \[64, 32\], expected each above the last"),
        (dict(batch=dict(buckets=[64, 64, 1024])), r"expected each above the last"),
        (dict(batch=dict(buckets=[64])), r"the last bucket is 64 and the longest row 1024"),
        (
            dict(batch=dict(buckets=[1024], packing=True)),
            r"buckets is read only where packing is False",
        ),
        (dict(mesh=dict(data=-1)), r"mesh.data \(run.py\), mesh.fsdp \(default\): only one axis"),
        (
            dict(data=dict(task="palette", messages="chat")),
            r"data.messages .* data.task .*: each says how a row becomes text",
        ),
        (dict(data=dict(suffix="{y}", task="palette")), r"data.suffix .* data.task"),
        (dict(data=dict(turns="last")), r"data.turns is read only with data.messages"),
        (dict(data=dict(columns=dict(a="b"))), r"data.columns is read only with data.task"),
        (
            dict(data=dict(image="", image_root="pictures")),
            r"data.image_root .* data.image .*: no pictures are read; name their column, or leave",
        ),
        (dict(data=dict(image="", augment=[["flip", 0.5]])), r"or leave out data.augment"),
        (dict(data=dict(augment=[["flip", 2]])), r"2.0 for flip, expected a share from 0 to 1"),
        (dict(data=dict(augment=[["crop", 0]])), r"0.0 for crop, expected a share above 0"),
        (dict(data=dict(augment=[["flip", 1], ["flip", 1]])), r"flip, flip; expected each once"),
        (dict(eval=dict(holdout=9, split="val")), r"keep one"),
        (dict(eval=dict(split="train")), r"eval.split .*: these are the rows to train on"),
        (dict(eval=dict(source="rows.jsonl")), r"eval.source .*: these are the rows to train on"),
        (dict(eval=dict(patience=3)), r"eval.patience .*: no rows to evaluate"),
    ],
)
def test_fields_at_odds_stop(more, expected):
    (line,) = problems(more)
    assert re.search(expected, line), line


def test_a_schedule_may_fill_all_steps():
    fits = dict(schedule=dict(name="wsd", warmup=4, decay=0.6), steps=10)
    assert parse(joined(LEAST, fits)).steps == 10


def test_a_default_given_is_at_odds_with_nothing():
    assert parse(joined(LEAST, dict(trainable=dict(kind="full", rank=8)))).trainable.rank == 8


@pytest.mark.parametrize("job", [TOTTO, PALIGEMMA, PRICE])
def test_resolved_goes_through_json_and_back(job):
    run = parse(job)
    saved = resolved(run)
    assert json.loads(json.dumps(saved)) == saved
    assert parse(saved) == run


def test_difference_names_what_changed():
    old, new = parse(TOTTO), parse(joined(TOTTO, dict(optim=dict(lr=1e-4), eval=dict(every=None))))
    lines = ["optim.lr: 5e-05 -> 0.0001", "eval.every: 100 -> null"]
    assert difference(old, new) == lines
    assert difference(old, old) == []
    # What was saved by another version may have other fields.
    saved = resolved(old) | dict(epochs=2.0, gone=True)
    lines += ["gone: true -> (no such field)"]
    assert difference(saved, new) == ["epochs: 2.0 -> 1.0", *lines]


def test_a_field_that_is_newer_than_a_run_changes_nothing_by_its_default():
    old = parse(TOTTO)
    saved = resolved(old)
    del saved["seed"], saved["data"]["augment"], saved["generate"]
    assert difference(saved, old) == difference(old, saved) == []
    changed = parse(joined(TOTTO, dict(seed=3, generate=dict(batch=2))))
    assert difference(saved, changed) == [
        "seed: (no such field) -> 3", "generate.batch: (no such field) -> 2"
    ]  # fmt: skip


def test_describe_has_every_field_with_its_default():
    text = describe()
    for name, section in {"": schema.Config, **schema.SECTIONS}.items():
        for field in dataclasses.fields(section):
            if field.metadata:
                key = f"{name}.{field.name}" if name else field.name
                needed = key in ("model.path", "data.source", "trainable.rules")
                shown = "(needed)" if needed else repr(field.default)
                assert f"\n  {key} = {shown} " in text
                assert field.metadata["meaning"].split("; ")[0][:60] in text
    assert "number ≥ 0 and < 1; only with name adamw/adamw8bit/lion\n" in text
    assert "number > 0; only with name adamw/adamw8bit\n" in text
    assert all(len(line) <= 100 for line in text.splitlines())


def test_every_default_is_of_its_type():
    for key, field in schema.FIELDS.items():
        fitted = fields.fit(field.default, field.type, fields.conform)
        assert fitted == field.default and type(fitted) is type(field.default), key
        assert fields.within(fitted, field.metadata), key


def test_what_can_be_chosen_is_what_there_is():
    from jaxtune import sharding
    from jaxtune.adapters import lora
    from jaxtune.checkpoint import load as checkpoint
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
    assert choices("model.dtype") == {"auto", *checkpoint.DTYPES}
    assert tuple(vars(schema.Mesh())) == sharding.AXES
    assert choices("data.bad_rows") == set(errors.POLICIES)
    assert choices("data.too_long") == set(examples.TOO_LONG)
    assert choices("data.turns") == set(chat.TURNS)
    assert choices("batch.weighting") == set(batches.WEIGHTS)
    names, _ = get_args(get_args(schema.FIELDS["data.augment"].type)[0])
    assert get_args(names) == tuple(images.AUGMENTATIONS)


def test_an_argument_after_a_colon_is_handed_on(write):
    file = write(f"def get_config(size='3'):\n    return {LEAST!r} | dict(seed=int(size))\n")
    assert load(file).seed == 3
    assert load(f"{file}:7").seed == 7
    assert "run.py, line 2: ValueError: invalid literal" in refusal(load, f"{file}:large")
    write("def get_config(size): return {}\n")
    assert "found no argument for get_config(size); " in refusal(load, file)
    assert "--config=run.py:ARGUMENT" in refusal(load, file)
    write("def get_config(): return {}\n")
    assert "found 'large' for get_config(); " in refusal(load, f"{file}:large")
    write(PALETTE)  # whose get_config says what it returns
    assert "found 'large' for get_config(); " in refusal(load, f"{file}:large")
    assert load(write(PALETTE, "run.py:large")).trainable.rank == 16


@pytest.mark.parametrize(
    "text, expected",
    [
        ("x = 1\ny = 3 +\n", "run.py, line 2: SyntaxError: invalid syntax\n  y = 3 +"),
        (
            "def get_config():\n\n    return path / 3\n",
            "run.py, line 3: NameError: name 'path' is not defined\n  return path / 3",
        ),
        (
            "import json\njson.loads('{')\n",
            "run.py, line 2: JSONDecodeError: Expecting property name",
        ),
        ("import nowhere_to_be_found\n", "run.py, line 1: ModuleNotFoundError: No module named"),
        (
            "from ml_collections import ConfigDict\n"
            "def get_config():\n    config = ConfigDict()\n    config.optim.lr = 1.0\n",
            "run.py, line 4: AttributeError: \"'optim'\"; a section is made before its fields",
        ),
        (
            "from ml_collections import ConfigDict, config_dict\n"
            "def get_config():\n"
            "    return ConfigDict(dict(seed=config_dict.required_placeholder(int)))\n",
            "run.py: RequiredValueError: None value found in required reference",
        ),
        ("def get_config():\n    return get_config()\n", "run.py, line 2: RecursionError"),
        (b"x = '\xff'\n", "run.py, line 1: SyntaxError: (unicode error) 'utf-8' codec"),
        (b"x = '\x00'\n", "run.py: SyntaxError: source code string cannot contain null bytes"),
        ("", "run.py has no get_config(), expected a function"),
        ("get_config = {}\n", "run.py has no get_config(), expected a function"),
        ("def get_config(): return 3\n", "run.py: get_config() returned 3, expected a ConfigDict"),
    ],
)
def test_an_error_in_the_file_is_reported_with_its_line(write, text, expected):
    assert refusal(load, write(text)).startswith(expected)


def test_a_file_that_is_not_there_is_named_with_the_nearest(write):
    write(PALETTE, "palette_demo.py")
    assert refusal(load, "paletdemo.py") == "paletdemo.py: no such file; the nearest there is " + (
        "palette_demo.py"
    )
    assert refusal(load, "away/x.py") == "away/x.py: no such file"
    assert ". cannot be read (Is a directory); expected a Python file" in refusal(load, ".")


def test_a_config_may_start_from_its_neighbour_which_leaves_no_trace(write, tmp_path):
    write(PALETTE, "real.py")
    text = (
        "import real\n"
        "def get_config():\n"
        "    config = real.get_config()\n"
        "    config.model.path = 'demo'\n"
        "    return config\n"
    )
    demo = write(text, "demo.py")
    changed = ['model.path: "google/gemma-3-270m" -> "demo"']
    assert difference(load("real.py"), load(demo)) == changed
    assert "real" not in sys.modules and str(tmp_path) not in sys.path
    assert not Path("__pycache__").exists()
    # And no bytecode of the old one is taken for the new.
    write(PALETTE.replace("rank=16", "rank=17"), "real.py")
    assert load(demo).trainable.rank == 17
    write("def get_config():\n    return 1 / 0\n", "real.py")
    expected = "real.py, line 2: ZeroDivisionError: division by zero\n  return 1 / 0"
    assert refusal(load, demo) == expected


def test_importing_it_imports_neither_jax_nor_ml_collections():
    code = "import sys, jaxtune.config.load; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert not {"jax", "ml_collections", "yaml", "numpy"} & set(loaded.stdout.split())


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
