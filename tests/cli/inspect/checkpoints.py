"""Changes to a checkpoint's files, facts of its tokenizer, and the bytes that its arrays take."""

import json

import jax
import numpy as np
import tokenizers
from tokenizers import models, processors
from transformers import PreTrainedTokenizerFast

from jaxtune.checkpoint.formats.safetensors import Safetensors, write_sharded
from jaxtune.cli.inspect.report import inspect
from tests import reference

CASES = list(reference.CASES)
LINEAR = 7  # linear maps in a layer


def edit_config(directory, drop=(), **changes):
    file = directory / "config.json"
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: config[key] for key in config if key not in drop}))


def rewrite(directory, change):
    """Write the weights again as `change` turns a dictionary of arrays into another."""
    with Safetensors.open(directory) as stored:
        arrays = change({name: np.array(stored.read(name)) for name in stored.tensors})
    (directory / "model.safetensors").unlink()
    shapes = {name: (array.shape, array.dtype) for name, array in arrays.items()}
    write_sharded(directory, shapes, arrays.__getitem__)


def bpe(directory, **options):
    """A tokenizer as `save_pretrained` writes it."""
    tokens = ["<pad>", "<s>", "</s>", "<unk>", "a", "b", "ab"]
    numbers = {token: number for number, token in enumerate(tokens)}
    made = tokenizers.Tokenizer(models.BPE(numbers, [("a", "b")], unk_token="<unk>"))
    made.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    named = dict(bos_token="<s>", eos_token="</s>", pad_token="<pad>") | options
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, **named)
    tokenizer.save_pretrained(directory)
    return tokenizer


def settings(directory, drop=(), **changes):
    file = directory / "tokenizer_config.json"
    found = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: found[key] for key in found if key not in drop}))


def facts(directory):
    return inspect(directory).tokenizer


def taken(held) -> int:
    """The bytes of all arrays."""
    bits = (array.size * jax.dtypes.itemsize_bits(array.dtype) for array in jax.tree.leaves(held))
    return sum(bits) // 8
