"""Fine-tune published Gemma, Llama, Mistral, Phi and Qwen checkpoints in JAX.

The names here are the public surface; each is imported when it is first asked for.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxtune.beams import beam_search
    from jaxtune.checkpoint.adapter import load_adapter, save_adapter
    from jaxtune.checkpoint.export import save_merged
    from jaxtune.checkpoint.load import load
    from jaxtune.decode import generate
    from jaxtune.lora import add_lora, merge
    from jaxtune.models.layout import arrange
    from jaxtune.optim import optimizer
    from jaxtune.sharding import make_mesh
    from jaxtune.train import TrainState, eval_step, train_step

__version__ = "0.1.0"
__all__ = [
    "TrainState",
    "add_lora",
    "arrange",
    "beam_search",
    "eval_step",
    "generate",
    "load",
    "load_adapter",
    "make_mesh",
    "merge",
    "optimizer",
    "save_adapter",
    "save_merged",
    "train_step",
]

_HOMES = {
    "TrainState": "jaxtune.train",
    "add_lora": "jaxtune.lora",
    "arrange": "jaxtune.models.layout",
    "beam_search": "jaxtune.beams",
    "eval_step": "jaxtune.train",
    "generate": "jaxtune.decode",
    "load": "jaxtune.checkpoint.load",
    "load_adapter": "jaxtune.checkpoint.adapter",
    "make_mesh": "jaxtune.sharding",
    "merge": "jaxtune.lora",
    "optimizer": "jaxtune.optim",
    "save_adapter": "jaxtune.checkpoint.adapter",
    "save_merged": "jaxtune.checkpoint.export",
    "train_step": "jaxtune.train",
}


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'jaxtune' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
