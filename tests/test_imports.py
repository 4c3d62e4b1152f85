"""The layers of the code: read from the source, so that they cannot drift."""

import ast
import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# From the ground up. What stands in a layer may import what stands in lower ones, and itself;
# never what stands above it or beside it.
LAYERS = (
    ("display",),
    ("tree", "files"),
    ("config", "metrics", "data"),
    ("quant", "tasks", "workdir"),
    ("sharding",),
    ("models",),
    ("adapters",),
    ("training", "decoding"),
    ("families",),
    ("checkpoint",),
    ("assembly",),
    ("evaluation", "export"),
    ("runs",),
    ("cli",),
)
HEIGHT = {name: height for height, layer in enumerate(LAYERS) for name in layer}
MOST_ENTRIES = 22  # directly under jaxtune/
NO_CODE = {"__pycache__", "py.typed"}
MOST_LINES = 400  # of a file
FAMILIES = "gemma|llama|qwen|phi|mistral"


def parts(path: Path) -> tuple[str, ...]:
    """The name of a file's module: ("jaxtune", "data", "loader")."""
    found = path.relative_to(ROOT).with_suffix("").parts
    return found[:-1] if found[-1] == "__init__" else found


MODULES = {".".join(parts(path)): path for path in sorted((ROOT / "jaxtune").rglob("*.py"))}


def imports(path: Path) -> set[str]:
    """The modules of ours that a file imports, wherever in it the import stands."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in MODULES else node.module)
    return {name for name in found if name.split(".")[0] == "jaxtune"}


def part(module: str) -> str:
    """The folder or file directly under jaxtune/ that a module is in; "" is jaxtune itself."""
    return [*module.split("."), ""][1]


def against_the_order(files) -> list[str]:
    """The imports of files, (module, path), that the order of layers does not allow."""
    found = []
    for module, path in files:
        here = part(module)
        for imported in sorted(imports(path)):
            there = part(imported)
            if here in ("", there) or not there:  # jaxtune itself names the public surface
                continue
            if HEIGHT[there] >= HEIGHT[here]:
                found.append(f"{module} may not import {imported}: {there} is not below {here}")
    return found


def test_every_folder_stands_in_one_layer():
    there = {part(module) for module in MODULES} - {""}
    assert sorted(there) == sorted(itertools.chain(*LAYERS))


@pytest.mark.parametrize("module", MODULES)
def test_no_folder_imports_one_above_or_beside_it(module):
    assert against_the_order([(module, MODULES[module])]) == []


def test_below_assembly_nothing_sees_a_whole_config():
    for module, path in MODULES.items():
        whole = re.search(r"import .*\bConfig\b", path.read_text())
        assert (
            not whole
            or part(module) in ("", "config")
            or HEIGHT[part(module)] >= HEIGHT["assembly"]
        )


@pytest.mark.parametrize("line", ["from jaxtune.runs import run", "import jaxtune.evaluation"])
def test_an_import_against_the_order_is_found(line, tmp_path):
    file = tmp_path / "turned.py"
    file.write_text(f"def late():\n    {line}\n")
    (problem,) = against_the_order([("jaxtune.export.turned", file)])
    assert "jaxtune.export.turned may not import" in problem


def test_a_folder_of_few_entries_and_files_of_few_lines():
    entries = {each.name for each in (ROOT / "jaxtune").iterdir()} - NO_CODE
    assert len(entries) <= MOST_ENTRIES, sorted(entries)
    folders = ("jaxtune", "tests", "configs", "benchmarks")
    files = itertools.chain.from_iterable((ROOT / name).rglob("*.py") for name in folders)
    long = {path: path.read_text().count("\n") for path in files}
    assert {path: lines for path, lines in long.items() if lines > MOST_LINES} == {}


def test_tests_mirror_the_code():
    folders = {path.parent.relative_to(ROOT / "jaxtune") for path in MODULES.values()}
    tested = {
        path.parent.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("test_*.py")
    }
    assert tested <= folders | {Path("launch"), Path("examples")}  # files beside the package


def test_no_model_names_a_family():
    for path in (ROOT / "jaxtune" / "models").glob("*.py"):
        code = ast.unparse(without_docstrings(ast.parse(path.read_text())))
        code = code.replace("PaliGemma", "").replace("paligemma", "")  # a way to see, not a family
        assert not re.search(FAMILIES, code, re.IGNORECASE) or path.name == "rope.py", path


def without_docstrings(node: ast.AST) -> ast.AST:
    for each in ast.walk(node):
        body = getattr(each, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            each.body = body[1:] or [ast.Pass()]
    return node


def test_importing_jaxtune_imports_nothing_heavy():
    heavy = {"jax", "flax", "torch", "tensorflow", "transformers", "huggingface_hub"}
    code = "import sys, jaxtune; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert not heavy & set(loaded.stdout.split())


def test_the_public_surface_is_there():
    import jaxtune

    assert dir(jaxtune) == sorted(jaxtune.__all__)
    for name in jaxtune.__all__:
        found = getattr(jaxtune, name)
        assert callable(found) or (found.__doc__ and found.__name__.startswith("jaxtune.")), name
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        jaxtune.lode  # noqa: B018
