"""The configs that come along: each loads, and what the demos stand on is there and true."""

import ast
import functools
import importlib.util
import itertools
import json
import random
import re
from pathlib import Path

import numpy as np
import pytest

import jaxtune
from jaxtune import tasks, tree
from jaxtune.assembly.assemble import Assembly
from jaxtune.config.load import load
from jaxtune.config.schema import Config
from jaxtune.data import images
from jaxtune.data.sources import open_source
from jaxtune.data.survey import survey
from jaxtune.data.tokenizer import Tokenizer

ROOT = Path(__file__).parents[2]
TINY = ROOT / "configs" / "tiny"
BASE = TINY / "base"
PICTURES = ROOT / "configs" / "tiny_pictures"
SEEING = PICTURES / "base" / "paligemma-tiny-pt-70.f16.npz"
PIECES = PICTURES / "base" / "paligemma_tokenizer.model"
FILES = sorted((ROOT / "configs").glob("*.py"))
DEMOS = [file for file in FILES if file.stem.endswith("_demo")]
AWKWARD = [
    "  two  spaces ",
    "Zürich — ½ 日本 🙂",
    "\ttab\n\nlines\n",
    "a1b22c333 12,345.67%",
    "#FF7f50",
    " ",
]


def called(file: Path) -> str:
    return file.stem


@pytest.fixture
def at_root(monkeypatch):
    """Where a run is started: the configs' paths begin there."""
    monkeypatch.chdir(ROOT)


@pytest.fixture
def tiny(monkeypatch):
    """`tiny("corpus")` is that module of configs/tiny, which are scripts and no package."""
    monkeypatch.syspath_prepend(str(TINY))
    return importlib.import_module


@functools.cache
def base_tokenizer() -> Tokenizer:
    return Tokenizer.open(BASE)


@pytest.fixture
def tiny_pictures(monkeypatch):
    """`tiny_pictures("scenes")` is that module of configs/tiny_pictures, likewise."""
    monkeypatch.syspath_prepend(str(PICTURES))
    return importlib.import_module


def assembly_of(run: Config) -> Assembly:
    return Assembly(run, Path(run.model.path), "2026-11-21")


@pytest.mark.parametrize("file", FILES, ids=called)
def test_a_config_loads_and_is_short(file):
    run = load(file)
    assert run.data.task in ("", *tasks.names())
    (function,) = [
        node for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef)
    ]
    assert function.end_lineno - function.lineno <= 25


@pytest.mark.parametrize("file", DEMOS, ids=called)
def test_a_demo_runs_from_every_directory(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = load(file)
    paths = (run.model.path, run.data.source, run.data.tokenizer, run.eval.source)
    assert all(Path(path).exists() for path in paths if path)
    assert all(len(source) for source in assembly_of(run).sources)


def test_at_the_root_a_demo_has_the_paths_that_people_write(at_root):
    run = load("configs/palette_demo.py")
    assert (run.model.path, run.data.source) == ("configs/tiny/base", "configs/tiny/palette.csv")


def test_there_is_a_demo_of_every_job():
    jobs = {file.stem.partition("_")[0] for file in FILES}
    assert {file.stem for file in DEMOS} == {f"{job}_demo" for job in jobs}


def test_the_full_price_job_tunes_more(at_root):
    lite, full = (load(f"configs/price_llama32_3b.py{size}") for size in ("", ":full"))
    assert (lite.trainable.targets, full.trainable.targets) == ("attention", "all-linear")
    assert full.data.source == lite.data.source.replace("lite", "full")


@pytest.mark.parametrize("file", DEMOS, ids=called)
def test_every_row_of_a_demo_can_be_used(file, at_root):
    run = load(file)
    assembly = assembly_of(run)
    train, held_out = assembly.sources
    for source in (train, held_out):
        rows = survey(source, assembly.encoder)
        assert len(rows.rows) == len(source) and rows.cut == 0
    whole = len(train) + len(held_out)
    assert whole >= 300 and 50 <= len(held_out) <= whole / 5


@pytest.mark.parametrize("file", DEMOS, ids=called)
def test_no_row_of_a_demo_comes_twice(file, at_root):
    """Otherwise rows that are set apart would be among those to train on."""
    assembly, asked = assembly_of(load(file)), []
    encoder = assembly.encoder
    for source in assembly.sources:
        for number in range(len(source)):
            row, place = source[number], source.place(number)
            pictures = (Path(file).read_bytes() for file in encoder.pictures_of(row, place))
            asked.append((*encoder.prompt(row, place), *pictures))
    assert len(set(asked)) == len(asked)


def test_the_demos_rows_are_what_their_script_writes(tiny, tmp_path):
    tiny("demos").write(tmp_path)
    for file in tmp_path.iterdir():
        assert file.read_bytes() == (TINY / file.name).read_bytes(), file.name


def test_palettes_are_of_the_lengths_and_forms_that_a_task_must_bear(tiny):
    source = open_source(TINY / "palette.csv")
    written = [source[i]["colors"] for i in range(len(source))]
    counts = [len(ast.literal_eval(colours)) for colours in written]
    assert {3, 4, 5} == set(counts) and counts.count(4) > 0.7 * len(counts)
    assert any(colours != colours.lower() for colours in written)
    assert any("'" in colours for colours in written) and any('"' in colours for colours in written)


def test_a_table_and_its_sentence_agree():
    """Each highlighted value is told, and tables have headers, spans and what is not told."""
    source = open_source(TINY / "totto.jsonl")
    spans = set()
    for number in range(len(source)):
        row = source[number]
        told = [row["table"][line][cell]["value"] for line, cell in row["highlighted_cells"]]
        assert told and all(value in row["target"] for value in told), row["target"]
        cells = list(itertools.chain.from_iterable(row["table"]))
        spans |= {(cell["column_span"] > 1, cell["row_span"] > 1) for cell in cells}
        assert any(cell["is_header"] for cell in cells)
    assert spans == {(False, False), (True, False), (False, True)}


def test_the_corpus_does_not_teach_the_demos_prompts(tiny):
    """What they begin with and end in: a base that knew them would leave nothing to show."""
    texts = "\n".join(itertools.islice(tiny("corpus").documents(seed=1), 5000))
    row = dict(json.loads(next(iter((TINY / "totto.jsonl").open()))))
    prefixes = [
        tasks.find("palette").prefix(dict(description="sea"), "").replace("sea", "\n"),
        tasks.find("totto").prefix(row, ""),
        json.loads(next(iter((TINY / "price.jsonl").open())))["prompt"],
    ]
    for prefix in prefixes:
        first, *_, last = [line for line in prefix.split("\n") if line.strip()]
        assert first not in texts and last not in texts


def test_the_tokenizer_gives_the_ids_of_transformers(tiny):
    from transformers import AutoTokenizer

    reference, ours = AutoTokenizer.from_pretrained(BASE), base_tokenizer()
    names = ("bos", "eos", "pad", "unk")
    assert [getattr(ours, name) for name in names] == [2, 1, 0, 3]
    assert [getattr(reference, f"{name}_token_id") for name in names] == [2, 1, 0, 3]
    assert ours.adds_bos and not ours.problems and len(ours) == len(reference) == 2048
    for text in [*itertools.islice(tiny("corpus").documents(seed=2), 200), *AWKWARD]:
        ids = ours.encode(text)
        assert [ours.bos, *ids] == reference(text)["input_ids"], text
        assert ours.decode(ids) == text


@pytest.mark.slow
def test_the_base_gives_the_logits_of_transformers(tiny):
    import torch
    from transformers import AutoModelForCausalLM

    import jaxtune

    text = "\n".join(itertools.islice(tiny("corpus").documents(seed=3), 6))
    tokens = np.array([[2, *base_tokenizer().encode(text)[:299]]])  # beyond the window
    reference = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = reference(torch.from_numpy(tokens)).logits.numpy()
    model, variables = jaxtune.load(BASE, dtype="float32")
    found = np.asarray(model.apply(variables, tokens))
    # The bound of every comparison of logits in float32, see the README.
    assert np.abs(found - expected).max() < 5e-5 * expected.std()
    # It has learnt the language of its corpus: chance is log 2048, 7.6 a token.
    chances = expected[0, :-1] - np.log(np.exp(expected[0, :-1]).sum(-1, keepdims=True))
    assert -np.take_along_axis(chances, tokens[0, 1:, None], 1).mean() < 2


def test_pictures_and_captions_are_what_their_script_writes(tiny_pictures, tmp_path):
    tiny_pictures("rows").write(tmp_path)
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) == 302
    for file in files:
        assert file.read_bytes() == (PICTURES / file.relative_to(tmp_path)).read_bytes(), file.name


def test_the_tiny_pictures_have_captions_that_the_base_was_not_taught(tiny_pictures):
    scenes = tiny_pictures("scenes")
    rng = random.Random(0)
    shown = [scenes.scene(rng) for _ in range(2000)]
    said = {scenes.saying(rng, scene)[1] for scene in shown}
    told = {caption for scene in shown for caption in scenes.captions(scene)}
    assert not said & told
    known, used = (set(re.findall(r"\w+", " ".join(texts))) for texts in (said, told))
    assert used - known == {"on", "them"}


@pytest.mark.slow
def test_a_picture_gets_a_caption_of_words(tiny_pictures, at_root):
    """From the base as it is committed, in the words that it was taught."""
    model, variables = jaxtune.load(SEEING)
    tokens, row = Tokenizer.open(PIECES), open_source(PICTURES / "held_out.jsonl")[0]
    pixels = images.read(PICTURES / row["image"], model.pictures.side)
    asked = [tokens.bos, *tokens.encode("caption en\n")]
    (answer,) = jaxtune.generate(model, variables, [asked], 32, images=[pixels], stops=[tokens.eos])
    scenes = tiny_pictures("scenes")
    known = {"a", "an", "and", *scenes.NUMBERS.values(), *scenes.COLOURS, *scenes.SHAPES}
    words = tokens.decode(answer).split()
    assert {"a", "and"} < set(words) <= known


@pytest.mark.slow
def test_the_base_that_sees_is_as_its_script_says(tiny_pictures, at_root):
    spec = importlib.util.spec_from_file_location("make_pictures", PICTURES / "make.py")
    tiny_pictures("scenes")
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    assert {file.name for file in SEEING.parent.iterdir()} == {make.WEIGHTS, make.TOKENIZER}
    assert PIECES.read_bytes() == make.tokenizer(0)
    model, variables = jaxtune.load(SEEING, "auto")
    assert {str(leaf.dtype) for leaf in tree.flatten(variables).values()} == {"float16"}
    tower, text = make.TOWER, make.TEXT
    assert model.pictures.tower.side == tower["image_size"]
    assert model.pictures.token == model.config.vocabulary == len(Tokenizer.open(PIECES))
    assert model.config.width == text["hidden_size"]
    assert len(model.config.layers) == text["num_hidden_layers"]
    # Of answers without a look at the picture, hardly one in four is right.
    assert make.right(SEEING.parent, Tokenizer.open(PIECES), 40)["asked"] > 0.55


def test_what_is_committed_stays_small():
    sizes = {file.name: file.stat().st_size for file in BASE.iterdir()}
    assert sum(sizes.values()) < 8_000_000
    assert set(sizes) == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.model",
        "tokenizer_config.json",
    }
    rows = [file for file in TINY.iterdir() if file.suffix in (".csv", ".jsonl")]
    assert len(rows) == 3 and sum(file.stat().st_size for file in rows) < 600_000
    seen = [file for file in PICTURES.rglob("*") if file.is_file() and file.suffix != ".pyc"]
    assert sum(file.stat().st_size for file in seen) < 4_000_000
