"""The README's first lines work as typed, and its file tree is the one there is."""

import re
from pathlib import Path

import pytest

from jaxtune import demo, families

README = Path(__file__).parent.parent / "README.md"


def blocks(language: str) -> list[str]:
    fenced = README.read_text().split("```")[1::2]
    return [text.removeprefix(language) for text in fenced if text.startswith(f"{language}\n")]


def test_usage_works_as_typed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    demo.main()
    shown = capsys.readouterr().out
    assert re.search(r"'q' +'u' 100%\n", shown)
    usage = blocks("python")[0]
    space = {}
    exec(usage, space)
    assert space["logits"].shape == (1, 9, demo.LETTERS)
    assert Path("runs/copy/model.safetensors").exists()
    # A second demo finds the first one's checkpoint and leaves it.
    written = Path("runs/demo/model.safetensors").stat().st_mtime_ns
    demo.main()
    assert Path("runs/demo/model.safetensors").stat().st_mtime_ns == written


@pytest.mark.parametrize("model_type", families.SUPPORTED)
def test_every_family_is_in_the_table(model_type):
    assert f"| `{model_type}` |" in README.read_text()


def test_the_file_tree_is_true():
    tree = next(block for block in blocks("") if "launch.py" in block)
    for name in re.findall(r"^ *([\w./]+\.py|[\w/]+/)", tree, re.MULTILINE):
        found = list(README.parent.rglob(name.rstrip("/")))
        assert found, f"{name} is in the README's file tree and nowhere else"
    for path in (README.parent / "jaxtune").glob("*.py"):
        assert path.name in tree or path.name == "__init__.py", f"{path} is not in the README"
