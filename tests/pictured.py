"""The live reference for models that see pictures: tiny random ones, and rows for them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import PaliGemmaForConditionalGeneration

from tests.data import made
from tests.reference import scramble

TOWER = dict(
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=3,
    num_attention_heads=2,
    patch_size=14,
    image_size=59,  # three pixels are no patch
    vision_use_head=False,
)
TEXT = dict(
    vocab_size=97,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=4,
    num_attention_heads=4,
    head_dim=16,
    max_position_embeddings=256,
)
SECOND = dict(
    num_key_value_heads=2,
    query_pre_attn_scalar=16,
    sliding_window=4096,
    final_logit_softcapping=None,
)
TEXTS = {
    "paligemma": ("GemmaConfig", dict(num_key_value_heads=1)),
    "paligemma2": ("Gemma2Config", SECOND),
    "paligemma2-capped": (
        "Gemma2Config",
        SECOND | dict(final_logit_softcapping=20.0, query_pre_attn_scalar=24),
    ),
}
TOKEN, SIDE, PATCHES = 97, 59, 16  # the picture token is the first with no embedding


def config(name: str, vocabulary: int = TOKEN) -> transformers.PaliGemmaConfig:
    """That of a tiny PaliGemma."""
    kind, options = TEXTS[name]
    options = options | dict(vocab_size=vocabulary)
    return transformers.PaliGemmaConfig(
        vision_config=transformers.SiglipVisionConfig(**TOWER),
        text_config=getattr(transformers, kind)(**TEXT | options),
        image_token_index=vocabulary,
        projection_dim=32,
        hidden_size=32,
        eos_token_id=1,
    )


def make(name: str, directory: Path, vocabulary: int = TOKEN) -> torch.nn.Module:
    """A random one, written to `directory`."""
    torch.manual_seed(0)
    chosen = config(name, vocabulary)
    chosen._attn_implementation = "eager"
    model = PaliGemmaForConditionalGeneration(chosen)
    scramble(model)
    model.eval().save_pretrained(directory)
    return model


def write_base(directory: Path, vocabulary: int = 512) -> Path:
    """A random one with a tokenizer beside it."""
    make("paligemma", directory, vocabulary)
    made.gemma(directory)
    return directory


@dataclass(frozen=True)
class Rows:
    """Pictures with a prefix and a suffix each."""

    tokens: np.ndarray  # int32[B, T], those of the picture first
    valid: np.ndarray  # bool[B, T]
    causal: np.ndarray  # bool[B, T], True in suffixes
    images: np.ndarray  # float32[B, S, S, 3]


def rows(seed: int = 0, prefixes=(5, 3, 7), suffixes=(6, 4, 5), length: int = 30) -> Rows:
    """Rows of unequal parts, with padding behind."""
    random = np.random.default_rng(seed)
    shape = (len(prefixes), length)
    tokens, valid, causal = np.zeros(shape, np.int32), np.zeros(shape, bool), np.ones(shape, bool)
    for row, (prefix, suffix) in enumerate(zip(prefixes, suffixes, strict=True)):
        end = PATCHES + prefix + suffix
        tokens[row, :PATCHES] = TOKEN
        tokens[row, PATCHES:end] = random.integers(3, TOKEN, prefix + suffix)
        valid[row, :end], causal[row, : PATCHES + prefix] = True, False
    images = random.uniform(-1, 1, (shape[0], SIDE, SIDE, 3)).astype(np.float32)
    return Rows(tokens, valid, causal, images)


def inputs(given: Rows) -> dict[str, torch.Tensor]:
    """Rows as transformers takes them."""
    return dict(
        input_ids=torch.from_numpy(given.tokens.astype(np.int64)),
        pixel_values=torch.from_numpy(given.images).permute(0, 3, 1, 2),
        attention_mask=torch.from_numpy(given.valid.astype(np.int64)),
        token_type_ids=torch.from_numpy(given.causal.astype(np.int64)),
    )
