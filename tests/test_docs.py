"""What the README and the pages under docs/ show works as typed, and what they list is there."""

import ast
import os
import re
import shlex
from pathlib import Path

import jax
import pytest

import jaxtune
import launch
from jaxtune import families
from jaxtune.config import load as schema
from tests.test_imports import LAYERS
from tests.training.test_step import padded, texts

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
# What a command needs that is not in the repository, by the words that name it.
ELSEWHERE = ("configs/x.py", "runs/", "/Llama-", "GEM/", "totto_train_data", "FILE", "me/")
HEAVY = ("eval", "generate", "train", "export", "push")  # the suite runs these elsewhere


def blocks(page: Path) -> list[str]:
    """The Python of a page."""
    fenced = page.read_text().split("```")[1::2]
    return [text.removeprefix("python") for text in fenced if text.startswith("python\n")]


def commands() -> list[str]:
    """The commands of all pages, a line each."""
    lines = (line for page in PAGES for line in page.read_text().splitlines())
    found = (re.match(r" {4}(?:HF_TOKEN=\S+ )?python (launch\.py .*)", line) for line in lines)
    return sorted({match[1] for match in found if match})


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A directory to work in, with the bundled configs."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


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


@pytest.mark.slow
def test_the_readme_s_python_works_as_typed(place):
    space = {"batches": [padded(list(texts(0)))]}
    exec(next(each for each in blocks(README) if "train_step" in each), space)
    assert Path("runs/adapter/adapter_config.json").exists()


@pytest.mark.slow
def test_usage_works_as_typed(place):
    first, _, loop = blocks(ROOT / "docs" / "python.md")
    space = {}
    exec(first, space)
    assert space["logits"].shape[:2] == (1, 4)
    assert Path("runs/copy/model.safetensors").exists()
    space |= {"jax": jax, "batches": [padded(list(texts(0)))]}
    exec(loop, space)
    assert Path("runs/tuned/model.safetensors").exists()
    model, fresh = space["jaxtune"].load("configs/tiny/base")
    assert "lora" in space["jaxtune"].load_adapter(model, fresh, "runs/adapter")


@pytest.mark.slow
def test_pictures_work_as_typed(place):
    bundled = ROOT / "configs" / "tiny_pictures"
    (place / "paligemma-3b-pt-224.f16.npz").symlink_to(next(bundled.rglob("*.npz")))
    (place / "cat.jpg").symlink_to(next(bundled.rglob("*.png")))
    (block,) = blocks(ROOT / "docs" / "pictures.md")
    space = {"jaxtune": jaxtune}
    exec(block, space)
    assert len(space["answers"][0]) > 0
    assert Path("runs/tuned.npz").exists()


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
    """Each is parsed; of those about bundled files, the light ones are run in another test."""
    _, *arguments = shlex.split(command, comments=True)
    options = launch.parsed(arguments)
    assert callable(options.run)


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        each
        for each in commands()
        if not any(word in each for word in ELSEWHERE) and each.split()[1] not in HEAVY
    ],
)
def test_light_commands_about_bundled_files_run(command, place, capsys):
    _, *arguments = shlex.split(command, comments=True)
    if not arguments[0].startswith("-"):  # a bare --config trains
        assert launch.main(arguments) == 0
        assert capsys.readouterr().out


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
