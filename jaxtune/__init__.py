"""Fine-tune published Gemma, Llama, Mistral, Phi and Qwen checkpoints in JAX.

The names in `__all__` are the public API; each is imported when it is first accessed.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxtune import metrics
    from jaxtune.adapters.lora import add_lora, merge
    from jaxtune.checkpoint.load import load
    from jaxtune.checkpoint.origin import Origin
    from jaxtune.checkpoint.peft.load_adapter import load_adapter
    from jaxtune.checkpoint.peft.save_adapter import save_adapter
    from jaxtune.checkpoint.save import save_merged
    from jaxtune.cli.notebook import Curve, show
    from jaxtune.config.load import load as load_config
    from jaxtune.config.schema import Config
    from jaxtune.data import images
    from jaxtune.data.batches import Batch, collate
    from jaxtune.data.examples import Chat, RowEncoder, Template
    from jaxtune.data.tokenizer import Tokenizer
    from jaxtune.decoding.beams import beam_search
    from jaxtune.decoding.generate import generate
    from jaxtune.decoding.text import answers
    from jaxtune.evaluation.in_memory import evaluate
    from jaxtune.metrics import Metric
    from jaxtune.models.forward import hidden_states
    from jaxtune.models.layout import arrange
    from jaxtune.runs.run import fit
    from jaxtune.runs.sweep.sweep import sweep
    from jaxtune.sharding import make_mesh
    from jaxtune.training import objectives
    from jaxtune.training.objectives import CrossEntropy, Forward, log_probs
    from jaxtune.training.optim import optimizer
    from jaxtune.training.population import Population, population_losses, population_step
    from jaxtune.training.step import TrainState, eval_step, train_step

__version__ = "0.1.0"
__all__ = [
    "Batch",
    "Chat",
    "Config",
    "CrossEntropy",
    "Curve",
    "Forward",
    "Metric",
    "Origin",
    "Population",
    "RowEncoder",
    "Template",
    "Tokenizer",
    "TrainState",
    "add_lora",
    "answers",
    "arrange",
    "beam_search",
    "collate",
    "eval_step",
    "evaluate",
    "fit",
    "generate",
    "hidden_states",
    "images",
    "load",
    "load_adapter",
    "load_config",
    "log_probs",
    "make_mesh",
    "merge",
    "metrics",
    "objectives",
    "optimizer",
    "population_losses",
    "population_step",
    "save_adapter",
    "save_merged",
    "show",
    "sweep",
    "train_step",
]

# The module of each name, and after a colon another name that it has there; none for the module.
_HOMES = {
    "Batch": "jaxtune.data.batches",
    "Chat": "jaxtune.data.examples",
    "Config": "jaxtune.config.schema",
    "CrossEntropy": "jaxtune.training.objectives",
    "Curve": "jaxtune.cli.notebook",
    "Forward": "jaxtune.training.objectives",
    "Metric": "jaxtune.metrics",
    "Origin": "jaxtune.checkpoint.origin",
    "Population": "jaxtune.training.population",
    "RowEncoder": "jaxtune.data.examples",
    "Template": "jaxtune.data.examples",
    "Tokenizer": "jaxtune.data.tokenizer",
    "TrainState": "jaxtune.training.step",
    "add_lora": "jaxtune.adapters.lora",
    "answers": "jaxtune.decoding.text",
    "arrange": "jaxtune.models.layout",
    "beam_search": "jaxtune.decoding.beams",
    "collate": "jaxtune.data.batches",
    "eval_step": "jaxtune.training.step",
    "evaluate": "jaxtune.evaluation.in_memory",
    "fit": "jaxtune.runs.run",
    "generate": "jaxtune.decoding.generate",
    "hidden_states": "jaxtune.models.forward",
    "images": "jaxtune.data.images:",
    "load": "jaxtune.checkpoint.load",
    "load_adapter": "jaxtune.checkpoint.peft.load_adapter",
    "load_config": "jaxtune.config.load:load",
    "log_probs": "jaxtune.training.objectives",
    "make_mesh": "jaxtune.sharding",
    "merge": "jaxtune.adapters.lora",
    "metrics": "jaxtune.metrics:",
    "objectives": "jaxtune.training.objectives:",
    "optimizer": "jaxtune.training.optim",
    "population_losses": "jaxtune.training.population",
    "population_step": "jaxtune.training.population",
    "save_adapter": "jaxtune.checkpoint.peft.save_adapter",
    "save_merged": "jaxtune.checkpoint.save",
    "show": "jaxtune.cli.notebook",
    "sweep": "jaxtune.runs.sweep.sweep",
    "train_step": "jaxtune.training.step",
}


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'jaxtune' has no attribute {name!r}")
    home, colon, other = _HOMES[name].partition(":")
    value = importlib.import_module(home)
    if other or not colon:
        value = getattr(value, other or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Returns the public names, whether they have been imported or not."""
    return sorted(__all__)
