"""Importing the data modules imports nothing that takes seconds."""

import subprocess
import sys
from pathlib import Path

import pytest

import jaxtune.data

HEAVY = {"tensorflow", "torch", "transformers", "datasets", "pyarrow", "grain", "pandas"}
LATE = {"tokenizers", "sentencepiece", "jinja2"}  # where they are used, as quick as they are


@pytest.mark.slow
def test_importing_is_light():
    modules = [file.stem for file in Path(jaxtune.data.__path__[0]).glob("[a-z]*.py")]
    assert len(modules) > 10
    code = f"import sys; from jaxtune.data import {', '.join(modules)}; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert not (HEAVY | LATE) & set(loaded.stdout.split())
