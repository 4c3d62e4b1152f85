"""The metrics are plain Python and NumPy: they compare with others, and import none of them."""

import subprocess
import sys
from pathlib import Path

import jaxtune.metrics

OTHERS = {"jax", "flax", "torch", "transformers", "sacrebleu", "rouge_score", "nltk", "scipy"}


def test_importing_is_light():
    modules = [file.stem for file in Path(jaxtune.metrics.__path__[0]).glob("[a-z]*.py")]
    assert len(modules) > 10
    code = f"import sys; from jaxtune.metrics import {', '.join(modules)}; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert not OTHERS & set(loaded.stdout.split())
