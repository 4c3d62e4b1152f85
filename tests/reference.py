"""The live reference: tiny random transformers models, chosen to be awkward, and their logits."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM

from tests.marks import slow_after

# Tiny models: threads that wait for each other cost more than they bring.
torch.set_num_threads(1)

SMALL = dict(
    vocab_size=211,
    hidden_size=48,
    intermediate_size=72,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
LLAMA3 = dict(
    rope_type="llama3",
    rope_theta=500_000.0,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=32,
)
YARN = dict(rope_type="yarn", rope_theta=10_000.0, factor=4.0, original_max_position_embeddings=16)


def longrope(half: int, original: int) -> dict:
    """Phi's two sets of factors, for `half` rotated pairs."""
    return dict(
        rope_type="longrope",
        rope_theta=10_000.0,
        short_factor=[1.0 + 0.05 * i for i in range(half)],
        long_factor=[1.5 + 0.9 * i for i in range(half)],
        original_max_position_embeddings=original,
    )


@dataclass(frozen=True)
class Case:
    """One reference model: a transformers config class, what it is given, and a text's length."""

    config: str
    options: dict = field(default_factory=dict)
    length: int = 24

    def make_config(self):
        return getattr(transformers, self.config)(**SMALL | self.options)


SIGLIP = dict(
    model_type="siglip_vision_model",
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=1,
    num_attention_heads=2,
    image_size=16,
    patch_size=8,
)
GEMMA3_TOWER = dict(
    **{**SMALL, "vocab_size": 307},
    head_dim=16,
    sliding_window=6,
    sliding_window_pattern=3,
    rope_parameters=dict(
        full_attention=dict(rope_type="linear", factor=8.0, rope_theta=1_000_000.0),
        sliding_attention=dict(rope_type="default", rope_theta=10_000.0),
    ),
)

CASES: dict[str, Case] = {
    "gemma-mqa": Case("GemmaConfig", dict(num_key_value_heads=1, head_dim=16)),
    "gemma-untied": Case(
        "GemmaConfig", dict(head_dim=10, tie_word_embeddings=False, attention_bias=True)
    ),
    "gemma2-windows": Case("Gemma2Config", dict(head_dim=16, sliding_window=6)),
    "gemma2-mqa-uncapped": Case(
        "Gemma2Config",
        dict(
            num_key_value_heads=1,
            head_dim=12,
            num_hidden_layers=4,
            query_pre_attn_scalar=37,
            attn_logit_softcapping=None,
            final_logit_softcapping=None,
            sliding_window=5,
            layer_types=["full_attention", "sliding_attention"] * 2,
        ),
    ),
    "gemma3-seven-layers": Case(
        "Gemma3TextConfig", dict(num_hidden_layers=7, head_dim=16, sliding_window=5)
    ),
    "gemma3-linear-mqa": Case(
        "Gemma3TextConfig",
        dict(GEMMA3_TOWER, num_key_value_heads=1, final_logit_softcapping=20.0),
    ),
    "gemma3-tower": Case("Gemma3Config", dict(text_config=GEMMA3_TOWER, vision_config=SIGLIP)),
    "llama-llama3": Case("LlamaConfig", dict(rope_parameters=LLAMA3), length=48),
    "llama-mqa-tied-biased": Case(
        "LlamaConfig",
        dict(
            num_key_value_heads=1,
            tie_word_embeddings=True,
            attention_bias=True,
            mlp_bias=True,
            head_dim=20,
        ),
    ),
    "llama-linear": Case(
        "LlamaConfig",
        dict(rope_parameters=dict(rope_type="linear", factor=2.0, rope_theta=10_000.0)),
    ),
    "qwen2-tied-windows": Case(
        "Qwen2Config",
        dict(
            tie_word_embeddings=True, use_sliding_window=True, sliding_window=7, max_window_layers=1
        ),
    ),
    "qwen2-yarn": Case("Qwen2Config", dict(rope_parameters=YARN, vocab_size=199), length=40),
    "qwen3-wide-heads": Case("Qwen3Config", dict(head_dim=32, tie_word_embeddings=True)),
    "qwen3-mqa-biased": Case(
        "Qwen3Config",
        dict(
            head_dim=8,
            num_key_value_heads=1,
            attention_bias=True,
            use_sliding_window=True,
            sliding_window=5,
            max_window_layers=2,
        ),
    ),
    "phi3-window": Case("Phi3Config", dict(sliding_window=7, num_key_value_heads=4)),
    "phi3-longrope-short": Case(
        "Phi3Config",
        dict(
            rope_parameters=longrope(6, 32) | dict(partial_rotary_factor=1.0),
            original_max_position_embeddings=32,
        ),
    ),
    "phi4-mini-longrope-long": Case(
        "Phi3Config",
        dict(
            hidden_size=64,
            rope_parameters=longrope(6, 16) | dict(partial_rotary_factor=0.75),
            original_max_position_embeddings=16,
            tie_word_embeddings=True,
        ),
        length=40,
    ),
    "mistral-window": Case("MistralConfig", dict(sliding_window=5, head_dim=16)),
    "mistral-mqa": Case(
        "MistralConfig", dict(sliding_window=None, num_key_value_heads=1, vocab_size=193)
    ),
}

# `make check` compares the awkward ones; `make test` every one.
AWKWARD = ("gemma3-seven-layers", "phi4-mini-longrope-long")
EVERY = slow_after(len(AWKWARD), sorted(CASES, key=lambda name: name not in AWKWARD))


def make(case: Case, directory: Path, seed: int = 0) -> torch.nn.Module:
    """A random model of the case, written to `directory` as its makers would publish it."""
    torch.manual_seed(seed)
    config = case.make_config()
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    scramble(model)
    model.eval().save_pretrained(directory)
    return model


@torch.no_grad()
def scramble(model: torch.nn.Module) -> None:
    """Weights at which every part matters: sharp attention, norms and biases unlike their start."""
    for name, weight in model.named_parameters():
        if weight.ndim == 1:
            weight.add_(0.3 * torch.randn_like(weight))
        elif "embed" in name:
            weight.normal_(std=0.5)
        else:
            weight.normal_(std=1.5 * weight.shape[-1] ** -0.5)


@torch.no_grad()
def logits(model: torch.nn.Module, tokens: np.ndarray, valid: np.ndarray | None = None):
    """The reference's logits, float32[B, T, V]."""
    mask = None if valid is None else torch.from_numpy(valid.astype(np.int64))
    found = model(input_ids=torch.from_numpy(tokens), attention_mask=mask, use_cache=False)
    return found.logits.float().numpy()


def tokens(case: Case, batch: int = 2, seed: int = 0) -> np.ndarray:
    """Random text for a case, int64[B, T]."""
    config = case.make_config().get_text_config()
    return np.random.default_rng(seed).integers(3, config.vocab_size, (batch, case.length))
