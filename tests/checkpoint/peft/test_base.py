"""The base that an adapter stands on is told from others of its shapes."""

import re
import shutil

import pytest

import jaxtune
from jaxtune.checkpoint.formats.safetensors import CheckpointError
from tests.checkpoint.peft.adapters import PLAIN, adapted, attach, check_same
from tests.marks import slow_after


def test_a_base_of_which_the_config_is_left(pair, tmp_path):
    made = pair("llama-linear")
    (tmp_path / "base").mkdir()
    shutil.copy(made.directory / "config.json", tmp_path / "base")
    variables = adapted(made)
    directory = jaxtune.save_adapter(variables, tmp_path / "out", tmp_path / "base")
    check_same(jaxtune.load_adapter(made.model, made.variables, directory), variables)


@pytest.mark.parametrize("dtype", slow_after(1, ["bfloat16", "float16"]))
def test_a_base_held_in_another_dtype_is_that_base(pair, dtype, tmp_path):
    made = pair(PLAIN)
    model, plain = jaxtune.load(made.directory, dtype=dtype)
    variables = adapted(made, plain)
    directory = jaxtune.save_adapter(variables, tmp_path / "out", made.directory)
    check_same(jaxtune.load_adapter(model, plain, directory), variables)


def test_another_base_of_the_same_shapes(pair, other, directory):
    model, variables = other(0.01)
    with pytest.raises(CheckpointError) as refused:
        jaxtune.load_adapter(model, variables, directory)
    message = str(refused.value)
    assert str(pair("llama-linear").directory) in message and str(model.origin) in message
    apart = re.search(
        r"a different base .*: 12 of 12 leaves differ. embed/w differs by (\S+) of its norm",
        message,
    )[1]
    assert float(apart) == pytest.approx(0.01, rel=0.2)
    attached = jaxtune.load_adapter(model, variables, directory, any_base=True)
    check_same(attached, attach(pair("llama-linear"), directory))


@pytest.mark.slow
def test_codes_are_told_by_what_they_were_made_from(pair, other, directory):
    made, (model, _) = pair("llama-linear"), other(0.01)
    _, same = jaxtune.load(made.directory, quant="nf4")
    _, variables = jaxtune.load(model.origin, quant="nf4")
    jaxtune.load_adapter(made.model, same, directory)
    with pytest.raises(CheckpointError, match="trained on a different base"):
        jaxtune.load_adapter(model, variables, directory)
