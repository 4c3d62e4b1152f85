"""What the README and the pages under docs/ show works as typed, and what they list is there."""

import ast
import os
import re
import shlex
from pathlib import Path

import pytest

import launch
from jaxtune import families
from jaxtune.config import load as schema
from tests.test_imports import LAYERS

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path) -> list[str]:
    """The Python of a page."""
    fenced = page.read_text().split("```")[1::2]
    return [text.removeprefix("python") for text in fenced if text.startswith("python\n")]


def commands() -> list[str]:
    """The commands of all pages, a line each."""
    lines = (line for page in PAGES for line in page.read_text().splitlines())
    found = (re.match(r" {4}(?:HF_TOKEN=\S+ )?python (launch\.py .*)", line) for line in lines)
    return sorted({match[1] for match in found if match})


def test_the_readme_is_short_and_every_link_leads_somewhere():
    assert README.read_text().count("\n") <= 150
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page}: {link}"


def test_paths_in_the_pages_are_there():
    for page in PAGES:
        for path in re.findall(
            r"`((?:jaxtune|tests|configs|benchmarks)/[\w/.]+)`", page.read_text()
        ):
            assert (ROOT / path).exists(), f"{page}: {path}"


def test_the_config_is_one():
    space = {}
    exec(next(each for each in blocks(README) if "get_config" in each), space)
    assert schema.parse(space["get_config"]()).trainable.rank == 16


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_python_block_is_python(page):
    for block in blocks(page):
        assert ast.parse(block).body


def test_the_quantisation_rules_are_rules():
    (block,) = blocks(ROOT / "docs" / "quantisation.md")
    space = {}
    exec(block, space)
    assert schema.parse({**space_of(space), "data": {"source": "x.jsonl"}}).model.quant[0][1]


def space_of(space: dict) -> dict:
    """What a block of a config assigned."""
    return {name: value for name, value in space.items() if not name.startswith("__")}


@pytest.mark.parametrize("command", commands())
def test_every_command_is_one(command):
    """Each is parsed here, and run in test_docs_run.py."""
    _, *arguments = shlex.split(command, comments=True)
    options = launch.parsed(arguments)
    assert callable(options.run)


def test_benchmarks_and_make_targets_are_there():
    """The options of the benchmarks too; running them all takes hours."""
    text = "".join(page.read_text() for page in PAGES)
    scripts = re.findall(r"`?python (benchmarks/\w+\.py)([^`\n|]*)", text)
    assert scripts
    shared = (ROOT / "benchmarks" / "turns.py").read_text()
    for script, options in scripts:
        source = shared + (ROOT / script).read_text()
        for option in re.findall(r"--[a-z-]+", options):
            assert f'"{option}"' in source, f"{script} {option}"
    targets = re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"^ {4}make ([\w-]+)", text, re.MULTILINE)) <= set(targets)


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
