"""Config files become a typed `Config`, which goes through JSON and back."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxtune.config import schema
from jaxtune.config.fields import ConfigError
from jaxtune.config.load import config_of, describe, difference, load, parse, resolved
from tests.config.jobs import LEAST, PALETTE, PALIGEMMA, PRICE, TOTTO, joined


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


def test_numpy_numbers_and_paths_are_taken():
    more = dict(optim=dict(lr=np.float32(0.5)), steps=np.int64(7), model=dict(path=Path("a/b")))
    run = parse(joined(LEAST, more))
    assert json.dumps(resolved(run))
    assert (run.optim.lr, run.steps, run.model.path) == (0.5, 7, "a/b")


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
                shown = "(required)" if needed else repr(field.default)
                assert f"\n  {key} = {shown} " in text
                assert field.metadata["meaning"].split("; ")[0][:60] in text
    assert "number ≥ 0 and ≤ 0.9999; usually 0.9; only with name\n" in text
    assert "number ≥ 1e-20 and ≤ 1; usually 1e-8 to 1e-6; only with name\n" in text
    assert all(len(line) <= 100 for line in text.splitlines())


def test_importing_it_imports_neither_jax_nor_ml_collections():
    code = "import sys, jaxtune.config.load; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert not {"jax", "ml_collections", "yaml", "numpy"} & set(loaded.stdout.split())


def test_a_section_within_a_section():
    config = parse(joined(TOTTO, dict(data=dict(task="", messages="talk", chat={"tools": "t"}))))
    assert (config.data.chat.tools, config.data.chat.options) == ("t", ())
    assert resolved(config)["data"]["chat"] == {"tools": "t", "options": []}
    assert parse(resolved(config)) == config
    typed = "--config.data.chat.options={'enable_thinking': False}"
    file = Path(__file__).parents[2] / "configs" / "totto_gemma3_270m.py"
    with pytest.raises(ConfigError, match=r"data\.chat\.options is used only with data.messages"):
        load(file, [typed])
    found = load(file, [typed, "--config.data.task=", "--config.data.messages=talk"])
    assert found.data.chat.options == (("enable_thinking", False),)
    with pytest.raises(ConfigError, match=r"such as data\.chat\.tools"):
        parse(joined(TOTTO, dict(data=dict(chat="chatml"))))


def test_what_config_of_takes(tmp_path):
    config = parse(TOTTO)
    (tmp_path / "run.py").write_text(f"def get_config():\n    return {TOTTO!r}\n")
    assert config_of(config) == config_of(TOTTO) == config_of(tmp_path / "run.py") == config
