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
    text = next(block for block in blocks("") if "launch.py" in block)
    named, parents = set(), []
    for indent, name in re.findall(r"^( *)([\w./]+)", text, re.MULTILINE):
        parents = [*parents[: len(indent) // 2], name.rstrip("/")]
        named.add("/".join(parents))
    root = README.parent
    assert {name for name in named if not (root / name).exists()} == set()
    # Families have a line together, and tests and benchmarks too.
    modules = {str(path.relative_to(root)) for path in (root / "jaxtune").rglob("*.py")}
    listed = {name for name in modules if "families/" not in name and "__init__" not in name}
    assert listed - named == set()
