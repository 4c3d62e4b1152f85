"""Where a model came from: its tokenizer and stops, and what that does not decide."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxtune
from jaxtune import families
from jaxtune.checkpoint.formats.tensors import CheckpointError
from jaxtune.checkpoint.origin import Origin
from jaxtune.data.errors import DataError
from jaxtune.decoding.generate import stops_of

CONFIGS = Path(__file__).parents[2] / "configs"
ARCHIVE = CONFIGS / "tiny_pictures" / "base" / "paligemma-tiny-pt-70.f16.npz"


def test_loading_says_where_from(base):
    model, _ = jaxtune.load(base)
    assert model.origin == Origin(base.absolute()) and str(model.origin) == str(base.absolute())
    assert model.origin.tokenizer.eos in model.origin.tokenizer.stops
    assert jaxtune.load(model.origin)[0] == model  # it is a path, too


@pytest.mark.parametrize(
    "files, stops",
    [
        ({"config.json": {"eos_token_id": 2}}, (2,)),
        ({"config.json": {"eos_token_id": 2}, "generation_config.json": {}}, (2,)),
        ({"config.json": {}, "generation_config.json": {"eos_token_id": [1, 106]}}, (1, 106)),
        ({"config.json": {"eos_token_id": 2}, "generation_config.json": {"eos_token_id": 3}}, (3,)),
        ({"config.json": {}}, ()),
        ({"config.json": {"text_config": {"eos_token_id": [1, 106]}}}, (1, 106)),
    ],
)
def test_stops_are_those_of_the_files(files, stops, tmp_path):
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    assert Origin(tmp_path).stops == stops


def test_stops_of_a_damaged_file(base, tmp_path):
    damaged = shutil.copytree(base, tmp_path / "base") / "generation_config.json"
    damaged.write_text('{"eos_token_id"')
    with pytest.raises(DataError, match=r"base: generation_config\.json cannot be read"):
        Origin(damaged.parent).stops  # noqa: B018


def test_an_archive_stops_where_the_tokenizer_beside_it_does(tmp_path):
    origin = Origin(ARCHIVE)
    assert origin.is_npz and origin.stops == origin.tokenizer.stops == (origin.tokenizer.eos,)
    shutil.copy(ARCHIVE, tmp_path)
    assert Origin(tmp_path / ARCHIVE.name).stops == ()  # no tokenizer is there


def test_two_places_are_one_program(base, tmp_path):
    other = Path(shutil.copytree(base, tmp_path / "other"))
    (model, variables), (again, _) = map(jaxtune.load, (base, other))
    assert model == again and hash(model) == hash(again)
    assert model.origin != again.origin and repr(model) == repr(again)
    apply = jax.jit(
        lambda model, variables, tokens: model.apply(variables, tokens), static_argnums=0
    )
    for each in (model, again):
        apply(each, variables, np.int32([[2, 3]]))
    assert apply._cache_size() == 1
    assert again.clone(remat="dots").origin == again.origin


def test_a_model_that_came_from_nowhere(base, tmp_path):
    _, _, model = families.read_config(base)
    assert model.origin is None and stops_of(model) == ()
    for origin in (None, Origin(tmp_path / "gone"), str(base)):
        with pytest.raises(CheckpointError, match=r"the model's origin is .*jaxtune\.Origin\("):
            Origin.of(model.clone(origin=origin))
