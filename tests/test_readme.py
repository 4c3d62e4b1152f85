"""The README's first lines work as typed, and the docs' file tree and glossary are true."""

import os
import re
from pathlib import Path

import jax
import pytest

import jaxtune
from jaxtune import families
from jaxtune.config import load as schema
from tests.test_imports import LAYERS
from tests.training.test_step import padded, texts

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"


def blocks(language: str) -> list[str]:
    fenced = README.read_text().split("```")[1::2]
    return [text.removeprefix(language) for text in fenced if text.startswith(f"{language}\n")]


def block(first: str) -> str:
    """The Python that begins so."""
    return next(text for text in blocks("python") if text.lstrip().startswith(first))


def test_the_config_is_one():
    space = {}
    exec(block("from ml_collections"), space)
    assert schema.parse(space["get_config"]()).trainable.rank == 16


@pytest.mark.slow
def test_usage_works_as_typed(tmp_path, monkeypatch):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    space = {}
    exec(block("import jax.numpy"), space)
    assert space["logits"].shape[:2] == (1, 4)
    assert Path("runs/copy/model.safetensors").exists()
    space |= {"jax": jax, "batches": [padded(list(texts(0)))]}
    exec(block("variables = jaxtune.add_lora"), space)
    assert Path("runs/tuned/model.safetensors").exists()
    model, fresh = space["jaxtune"].load("configs/tiny/base")
    assert "lora" in space["jaxtune"].load_adapter(model, fresh, "runs/adapter")


@pytest.mark.slow
def test_pictures_work_as_typed(tmp_path, monkeypatch):
    bundled = ROOT / "configs" / "tiny_pictures"
    (tmp_path / "paligemma-3b-pt-224.f16.npz").symlink_to(next(bundled.rglob("*.npz")))
    (tmp_path / "cat.jpg").symlink_to(next(bundled.rglob("*.png")))
    monkeypatch.chdir(tmp_path)
    space = {"jaxtune": jaxtune}
    exec(block("from jaxtune.data import images"), space)
    assert len(space["answers"][0]) > 0
    assert Path("runs/tuned.npz").exists()


@pytest.mark.parametrize("model_type", families.SUPPORTED)
def test_every_family_is_in_the_table(model_type):
    assert f"| `{model_type}` |" in README.read_text()


def test_the_file_tree_is_true():
    fenced = (ROOT / "docs" / "architecture.md").read_text().split("```")[1::2]
    text = next(block for block in fenced if "launch.py" in block)
    named, parents = set(), []
    for indent, name in re.findall(r"^( *)([\w./]+)", text, re.MULTILINE):
        parents = [*parents[: len(indent) // 2], name.rstrip("/")]
        named.add("/".join(parents))
    root = README.parent
    assert {name for name in named if not (root / name).exists()} == set()
    # Families have a line together, and tests and benchmarks too.
    modules = {str(path.relative_to(root)) for path in (root / "jaxtune").rglob("*.py")}
    families = {"jaxtune/families/" + name for name in os.listdir(root / "jaxtune/families")}
    listed = {name for name in modules - families if "__init__" not in name}
    assert listed - named == set()


def test_the_glossary_is_short_and_defines_no_term_twice():
    text = (ROOT / "docs" / "glossary.md").read_text()
    rows = re.findall(r"^\| \*\*(.+?)\*\* \| (.+) \|$", text, re.MULTILINE)
    terms = [term for names, _ in rows for term in names.split(", ")]
    assert 0 < len(rows) <= 25 and len(set(terms)) == len(terms)
    paths = re.findall(r"`(jaxtune/[\w/.]+)`", text)
    assert paths and all((ROOT / path).exists() for path in paths)


def test_the_docs_name_the_layers_in_their_order():
    text = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| (\d+) \| (.+?) \|", text, re.MULTILINE)
    assert [tuple(re.findall(r"`(\w+)`", names)) for _, names in rows] == list(LAYERS)
