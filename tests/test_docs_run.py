"""Every command and every Python block of the README and of docs/ runs, on small stand-ins.

A published checkpoint is the bundled tiny base under the published name, and a config takes a few
steps on a few rows. The Hub is one on this machine. All else is as typed.
"""

import io
import re
import shlex
import shutil
from pathlib import Path

import fsspec
import jax
import pytest

import jaxtune
import launch
from jaxtune.files.store import Store
from tests.cli.test_prepare import lines, official
from tests.objects import Objects
from tests.pushes import hub_on_this_machine
from tests.test_docs import PAGES, ROOT, blocks, commands
from tests.training.test_step import padded, texts

TEXT, PICTURES = ROOT / "configs/tiny/base", ROOT / "configs/tiny_pictures"
PUBLISHED = r"\b(?:meta-llama|google|Qwen)/[\w.-]+"
SHORT = """
from pathlib import Path

def get_config():
    space = {{"__file__": {path!r}}}
    exec(Path({path!r}).read_text(), space)
    config = space["get_config"]()
    few = dict(every=None, rows=2)
    if held_out := config.eval.get("holdout"):
        few["holdout"] = 4 if type(held_out) is int else 0.2
    short = dict(data=dict(rows=24), batch=dict(rows=2, accumulate=1), eval=few)
    if "kind" not in config.get("trainable", ()):  # adapters, which share their programs
        short["trainable"] = dict(rank=8, alpha=16, dropout=0.05)
        short["batch"]["max_length"] = 128
        short["model"] = dict(dtype="float32")
    config.update(short | dict(steps=2, epochs=None, generate=dict(max_new_tokens=4)))
    return config
"""
DEMO = "configs/palette_demo.py"
ORDER = ("train", "eval", "generate", "export")  # of commands that need one another's files
SWEEP = """
def get_sweep():
    return dict(space={"optim.lr": [1e-3, 3e-3]})
"""


def name_of(arguments: list[str]) -> str:
    """The command of a command line; without one, it trains."""
    return "train" if arguments[0].startswith("-") else arguments[0]


def rank(arguments: list[str]) -> int:
    name = name_of(arguments)
    if any("/trials/" in each for each in arguments):  # what a sweep left
        return len(ORDER) + 1
    return ORDER.index(name) if name in ORDER else len(ORDER)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A directory that has what the pages name, small."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    for folder in ("tiny", "tiny_pictures"):
        (tmp_path / "configs" / folder).symlink_to(ROOT / "configs" / folder)
    for page in PAGES:
        for name in re.findall(PUBLISHED, page.read_text()):
            stand_in = tmp_path / name
            if not stand_in.exists():
                stand_in.parent.mkdir(exist_ok=True)
                stand_in.symlink_to(TEXT)
    return tmp_path


@pytest.fixture
def data(place, objects, machine):
    """The data that the configs and commands of the pages read."""
    (place / "data").mkdir()
    shutil.copy(ROOT / "configs/tiny/palette.csv", "data/palettes.csv")
    lines(Path("totto_train_data.jsonl"), [official(number) for number in range(3)])
    # Rows as long as those of the palettes, so that both share programs.
    kinds = ("garden and shed " * 8, "office and shed " * 7, "kitchen and shed " * 10)
    things = ("a thing of oak and pine and iron", "a thing of glass and tin and gold")
    rows = [f"{things[number % 2]},{kinds[number % 3]}" for number in range(24)]
    Path("products.csv").write_text("\n".join(["product,category", *rows]))
    fsspec.register_implementation("gs", Objects, clobber=True)
    Store("gs://bucket/data").upload("palettes.csv", Path("data/palettes.csv"))
    (config,) = (each for each in blocks(ROOT / "docs/quickstart.md") if "get_config" in each)
    Path("products.py").write_text(config)
    Path("sweeps").mkdir()
    Path("sweeps/palette.py").write_text(SWEEP)
    own = {"configs/products.py": Path("products.py"), "configs/x.py": ROOT / DEMO}
    for name in set(re.findall(r"configs/\w+\.py", "\n".join(commands()))):
        path = own.get(name, ROOT / name).absolute()
        Path(name).write_text(SHORT.format(path=str(path)))


@pytest.mark.slow
def test_every_command_runs_as_typed(place, data, monkeypatch, capsys):
    typed = [shlex.split(command)[1:] for command in commands()]
    typed.append(["train", "--config", DEMO])  # by make demo
    with hub_on_this_machine(place, monkeypatch) as hub:
        for arguments in sorted(typed, key=rank):
            monkeypatch.setattr("sys.stdin", io.StringIO("garden chair\n"))
            if "--adapter" in arguments:  # somebody's on the Hub
                shutil.copytree(
                    "runs/x/export/adapter", arguments[arguments.index("--adapter") + 1]
                )
            assert launch.main(arguments) == 0, arguments
            assert capsys.readouterr().out, arguments
        (pushed,) = [name for name in hub.repositories if name.startswith("me/price-")]
        assert "adapter_model.safetensors" in hub.repositories[pushed].files
        assert hub.repositories["me/price"].private
    assert Path("runs/x/export/merged/model.safetensors").exists()
    assert Path("price/model.safetensors").exists()
    assert Path("runs/quick/summary.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_python_block_runs(page, place):
    """Those of one page one after the other, as a reader would type them."""
    (place / "paligemma-3b-pt-224.f16.npz").symlink_to(next(PICTURES.rglob("*.npz")))
    (place / "cat.jpg").symlink_to(next(PICTURES.rglob("*.png")))
    space = {"jax": jax, "batches": [padded(list(texts(0)))]}
    for block in blocks(page):
        exec(block, space)
    for target in re.findall(r'save_\w+\(.*"(runs/[\w./-]+)"', "".join(blocks(page))):
        assert Path(target).exists()
    if Path("runs/adapter").exists():
        model, fresh = jaxtune.load("configs/tiny/base")
        assert "lora" in jaxtune.load_adapter(model, fresh, "runs/adapter")
