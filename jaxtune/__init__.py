"""Fine-tune published Gemma, Llama, Mistral, Phi and Qwen checkpoints in JAX.

The names in `__all__` are the public API; each is imported when it is first accessed.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxtune.adapters.lora import add_lora, merge
    from jaxtune.checkpoint.load import load
    from jaxtune.checkpoint.origin import Origin
    from jaxtune.checkpoint.peft.load_adapter import load_adapter
    from jaxtune.checkpoint.peft.save_adapter import save_adapter
    from jaxtune.checkpoint.save import save_merged
    from jaxtune.decoding.beams import beam_search
    from jaxtune.decoding.generate import generate
    from jaxtune.models.forward import hidden_states
    from jaxtune.models.layout import arrange
    from jaxtune.notebook import Curve, show
    from jaxtune.runs.sweep.sweep import sweep
    from jaxtune.sharding import make_mesh
    from jaxtune.training.objective import CrossEntropy, Forward, log_probs
    from jaxtune.training.optim import optimizer
    from jaxtune.training.population import Population, population_losses, population_step
    from jaxtune.training.step import TrainState, eval_step, train_step

__version__ = "0.1.0"
__all__ = [
    "CrossEntropy",
    "Curve",
    "Forward",
    "Origin",
    "Population",
    "TrainState",
    "add_lora",
    "arrange",
    "beam_search",
    "eval_step",
    "generate",
    "hidden_states",
    "load",
    "load_adapter",
    "log_probs",
    "make_mesh",
    "merge",
    "optimizer",
    "population_losses",
    "population_step",
    "save_adapter",
    "save_merged",
    "show",
    "sweep",
    "train_step",
]

_HOMES = {
    "CrossEntropy": "jaxtune.training.objective",
    "Curve": "jaxtune.notebook",
    "Forward": "jaxtune.training.objective",
    "Origin": "jaxtune.checkpoint.origin",
    "TrainState": "jaxtune.training.step",
    "Population": "jaxtune.training.population",
    "add_lora": "jaxtune.adapters.lora",
    "arrange": "jaxtune.models.layout",
    "beam_search": "jaxtune.decoding.beams",
    "eval_step": "jaxtune.training.step",
    "generate": "jaxtune.decoding.generate",
    "hidden_states": "jaxtune.models.forward",
    "load": "jaxtune.checkpoint.load",
    "load_adapter": "jaxtune.checkpoint.peft.load_adapter",
    "log_probs": "jaxtune.training.objective",
    "make_mesh": "jaxtune.sharding",
    "merge": "jaxtune.adapters.lora",
    "optimizer": "jaxtune.training.optim",
    "population_losses": "jaxtune.training.population",
    "population_step": "jaxtune.training.population",
    "save_adapter": "jaxtune.checkpoint.peft.save_adapter",
    "save_merged": "jaxtune.checkpoint.save",
    "show": "jaxtune.notebook",
    "sweep": "jaxtune.runs.sweep.sweep",
    "train_step": "jaxtune.training.step",
}


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'jaxtune' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Returns the public names, whether they have been imported or not."""
    return sorted(__all__)
