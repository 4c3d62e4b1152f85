"""Fine-tune published Gemma, Llama, Mistral, Phi and Qwen checkpoints in JAX.

The names here are the public surface; each is imported when it is first asked for.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxtune.checkpoint.export import save_merged
    from jaxtune.checkpoint.load import load
    from jaxtune.models.layout import arrange
    from jaxtune.sharding import make_mesh

__version__ = "0.1.0"
__all__ = ["arrange", "load", "make_mesh", "save_merged"]

_HOMES = {
    "arrange": "jaxtune.models.layout",
    "load": "jaxtune.checkpoint.load",
    "make_mesh": "jaxtune.sharding",
    "save_merged": "jaxtune.checkpoint.export",
}


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'jaxtune' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
