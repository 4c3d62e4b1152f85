"""Model cards: their lines load what they stand beside, and they tell what is known and no more."""

import hashlib
import json
import os
import warnings
from itertools import pairwise
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard

import jaxtune
from jaxtune import tree
from jaxtune.adapters.lora import Lora
from jaxtune.config import load as configs
from jaxtune.config.schema import Config
from jaxtune.export import card, card_facts, markdown
from tests import pictured, reference

# Between frameworks in float32, over the logits' deviation: what tests/checkpoint bounds, too.
NEAR = 5e-5
TOKENS = np.asarray([[2, 10, 20, 30, 40]], np.int32)
SECRET = "hf_" + "a1B2" * 9


def config(base: Path | str, source: Path | str = "maker/rows", **changes) -> Config:
    values = {
        "model": {"path": str(base)},
        "data": {"source": str(source), "prefix": "a|`b`\n{theme}: "},
        "trainable": {"rank": 2, "alpha": 4.0},
        "eval": {"holdout": 2},
        "log": {"wandb": "secret project"},
    }
    return configs.parse({**values, **changes})


def adapted(directory: Path):
    """A checkpoint loaded, with adapters that matter."""
    model, variables = jaxtune.load(directory)
    variables = jaxtune.add_lora(variables, rank=2, alpha=4.0, key=jax.random.key(0))
    leaves = tree.flatten(variables["lora"], is_leaf=lambda leaf: isinstance(leaf, Lora))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    changed = {
        path: leaf.replace(b=0.3 * jax.random.normal(key, leaf.b.shape))
        for key, (path, leaf) in zip(keys, leaves.items(), strict=True)
    }
    return model, {**variables, "lora": tree.unflatten(changed)}


@pytest.fixture(scope="module")
def tuned(base):
    return adapted(base)


def blocks(file: Path) -> dict[str, str]:
    """The lines to load it, by library."""
    parts = file.read_text().split("```python\n")
    return {
        before.rsplit("With ", 1)[1].split(":")[0]: after.split("```")[0]
        for before, after in pairwise(parts)
    }


def run(code: str) -> dict:
    """What some lines make; libraries warn where a checkpoint lacks what they look for."""
    assert len(code.splitlines()) <= 3
    space = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        exec(code, space)
    assert not [str(each.message) for each in caught if "keys" in str(each.message)]
    return space


def near(found, want) -> None:
    found, want = (np.asarray(each, np.float32) for each in (found, want))
    assert np.abs(found - want).max() / want.std() < NEAR


def settled(monkeypatch, directory: Path, base: Path) -> None:
    """Work where the card's names are those of files."""
    monkeypatch.chdir(directory)
    Path(base.name).symlink_to(base)


@pytest.mark.parametrize("pictures", [False, True])
@pytest.mark.slow
def test_lines_that_load_an_adapter(tuned, base, pictures, tmp_path, monkeypatch):
    if pictures:
        base = pictured.write_base(tmp_path / "seeing", pictured.TOKEN)
        tuned = adapted(base)
    model, variables = tuned
    (tmp_path / "out").mkdir()
    jaxtune.save_adapter(variables, tmp_path / "out" / "adapter", base)
    file = card.write(tmp_path / "out" / "adapter", tmp_path, config(base), kind="adapter")
    code = blocks(file)
    assert [*code] == ["PEFT", "jaxtune"]
    settled(monkeypatch, tmp_path / "out", base)
    want = model.apply(variables, TOKENS)
    assert np.abs(want - model.apply({"params": variables["params"]}, TOKENS)).max() > 0.1
    ours = run(code["jaxtune"])
    near(ours["model"].apply(ours["variables"], TOKENS), want)
    live = run(code["PEFT"])["model"].eval()
    if pictures:
        given = pictured.rows()
        seen = dict(valid=given.valid, causal=given.causal)
        want = model.apply(variables, given.tokens, given.images, **seen)[given.valid]
        with torch.no_grad():
            near(live(**pictured.inputs(given)).logits.numpy()[given.valid], want)
    else:
        near(reference.logits(live, TOKENS), want)


@pytest.mark.slow
def test_lines_that_load_a_merged_model(tuned, base, tmp_path, monkeypatch):
    model, variables = tuned
    jaxtune.save_merged(model, variables, tmp_path / "merged", dtype="float32")
    code = blocks(card.write(tmp_path / "merged", tmp_path, config(base), kind="merged"))
    assert [*code] == ["transformers", "jaxtune"]
    monkeypatch.chdir(tmp_path)
    want = model.apply(variables, TOKENS)
    ours, live = run(code["jaxtune"]), run(code["transformers"])
    near(ours["model"].apply(ours["variables"], TOKENS), want)
    near(reference.logits(live["model"].eval(), TOKENS), want)
    assert live["tokenizer"].decode([2]) == "<bos>"


@pytest.mark.slow
def test_lines_that_load_an_npz(tmp_path, monkeypatch):
    pictured.make("paligemma", tmp_path / "base")
    model, variables = jaxtune.load(tmp_path / "base")
    jaxtune.save_merged(model, variables, tmp_path / "merged.npz", dtype="float32")
    written = config(tmp_path / "base", trainable={"kind": "full"})
    file = card.write(tmp_path / "merged.npz", tmp_path, written, kind="npz")
    assert file == tmp_path / "merged.md"
    assert "library_name" not in file.read_text()
    code = blocks(file)
    assert [*code] == ["jaxtune"]
    monkeypatch.chdir(tmp_path)
    ours = run(code["jaxtune"])
    near(ours["model"].apply(ours["variables"], TOKENS), model.apply(variables, TOKENS))
    # An adapter that stands on an .npz is nothing for PEFT.
    on_it = config(tmp_path / "merged.npz")
    (tmp_path / "adapter").mkdir()
    file = card.write(tmp_path / "adapter", tmp_path, on_it, kind="adapter")
    assert [*blocks(file)] == ["jaxtune"]


# What a card tells.


@pytest.fixture
def workdir(tmp_path):
    """A run's directory with all that a card reads."""
    place = tmp_path / "palettes"
    adapter = place / "export" / "adapter"
    adapter.mkdir(parents=True)
    (adapter / "adapter_model.safetensors").write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    about = place / "eval" / "tuned-1" / "about.json"
    about.parent.mkdir(parents=True)
    about.write_text(json.dumps({"tuned": [["adapter_model.safetensors", digest]]}))
    for name, content in {
        "run.json": {"started": "2026-01-02", "name": "palettes-1"},
        "summary.json": SUMMARY,
        "eval.json": judged(place),
        "export/adapter/export.json": exported(place),
    }.items():
        (place / name).write_text(json.dumps(content))
    lines = [
        {"step": 0, "kind": "eval", "loss": 6.0},
        *({"step": step, "kind": "train", "loss": 6 / step} for step in range(1, 9)),
        {"step": 8, "kind": "eval", "loss": 2.0},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (place / "metrics.jsonl").write_text(text + '{"step": 9, "ki')
    np.savez(place / ".train.npz", lengths=np.asarray([10, 30]), scored=np.asarray([4, 6]))
    return place


SUMMARY = {
    "steps": 8,
    "epochs": 2.0,
    "stopped_early": True,
    "eval_loss_before": 6.0,
    "eval_loss": 2.0,
    "eval_step": 8,
    "tokens": 12345,
    "examples": 64,
    "trained_parameters": 100,
    "parameters": 2000,
    "seconds": 61.0,
    "tokens_per_second": 202.4,
    "memory": {"bytes": 1 << 30, "of": "this process"},
    "devices": "1 × cpu",
    "exported": "/home/someone/export/adapter",
}


def exported(place: Path, **changes) -> dict:
    """As the export reports; paths in it are none of a card's."""
    same = {"logits": 1.2e-5, "kl": 2e-9, "agreement": 1.0, "positions": 128, "answers": 8}
    moved = same | {"logits": 0.31, "alike": 6}
    found = {
        "base": f"{place}/base",
        "step": 8,
        "adapter": None,
        "rows": {"from": "held-out rows", "count": 8},
        "comparison": same | {"alike": 8, "ties": 0, "limit": 1e-4, "kept": True},
        "reference": None,
        "merging": {"original": moved},
        "files": {},
    }
    return found | changes


def judged(place: Path) -> dict:
    figure = {"value": 12.0, "low": 11.0, "high": 13.5}
    better = {"value": 4.0, "low": 3.0, "high": 5.0}
    one = {"rows": 2, "loss": 6.0, "perplexity": None, "weights": "", "predictions": ""}
    tuned = {
        "weights": f"{place}/export/adapter",
        "predictions": f"{place}/eval/tuned-1/predictions.jsonl",
        "metrics": {"colour": better, "none": dict.fromkeys(("value", "low", "high"))},
    }
    less = {"value": -8.0, "low": -9.5, "high": -6.5, "intervals_overlap": False}
    return {
        "base": one | {"metrics": {"colour": figure}},
        "tuned": one | {"loss": 2.0, "perplexity": 7.389} | tuned,
        "tuned_less_base": {"colour": less},
        "remarks": [f"see {place}/eval and {SECRET}"],
    }


def test_what_a_card_tells(workdir, tmp_path):
    written = config(tmp_path / "models" / "base", tmp_path / "rows" / "palette.csv")
    file = card.write(workdir / "export" / "adapter", workdir, written, kind="adapter")
    text = file.read_text()
    for line in (
        "# palettes",
        "A LoRA adapter of rank 2 for `base` (a local checkpoint); tuned with jaxtune.",
        "Held-out loss, a scored token: 6.0000 before training, **2.0000** after step 8.",
        "![Loss by step](curve.svg)",
        "2 held-out rows answered by this, with 95% bootstrap intervals:",
        "|  | base | tuned | tuned less base |",
        "| colour | 12 [11, 13.5] | 4 [3, 5] | -8 [-9.5, -6.5] |",
        "| none | - | - | - |",
        "| held-out loss | 6 | 2 |  |",
        "| perplexity | - | 7.389 |  |",
        "- training: `palette.csv`; 2 rows of 40 tokens, 25% of them scored",
        "- held out: `palette.csv`, set apart from these",
        "| `data.prefix` | `` a\\|`b`\\n{theme}:  `` |",
        "| `trainable.rank` | `2` |",
        "Once written, it was compared on 8 rows (held-out rows):",
        "| loaded afresh | 1.2e-05 (up to 1e-04) | 2.0e-09 | 100.00% of 128 | 8 of 8 alike |",
        "| merging into the original weights | 3.1e-01 | 2.0e-09 | 100.00% of 128 | 6 of 8 alike |",
        "- 8 steps (2 epochs), stopped early: 64 rows, 12,345 tokens",
        "- 100 of 2,000 parameters trained",
        "- 1 × cpu: 1:01, 202 tokens a second, 1.00 GiB at most (this process)",
    ):
        assert line in text.splitlines(), line
    assert f"- jaxtune {jaxtune.__version__}; begun 2026-01-02, card of 20" in text
    svg = (file.parent / "curve.svg").read_text()
    assert svg.count("<polyline") == 2 and "training" in svg and "held-out" in svg
    for private in (str(tmp_path), SECRET, "/home", "secret project"):
        assert private not in text + svg
    assert "see eval and hf_…" in text


def test_the_front_matter_has_what_is_known(workdir, tmp_path):
    file = card.write(workdir / "export" / "adapter", workdir, config("mine"), kind="adapter")
    front = yaml.safe_load(file.read_text().split("---\n")[1])
    assert front == {
        "library_name": "peft",
        "tags": ["jaxtune", "lora"],
        "datasets": ["maker/rows"],
    }
    base = tmp_path / "snapshots" / ("0a" * 20)
    base.mkdir(parents=True)
    (base / "config.json").write_text("{}")
    (base / "README.md").write_text(
        "---\nlicense: other\nlicense_name: own\ntags: [x]\n---\n# Base"
    )
    settings = config(
        "Maker/Base-1@v2",
        eval={"source": "maker/held", "split": "test"},
        trainable={"kind": "lora", "variant": "dora"},
        model={"path": "Maker/Base-1@v2", "quant": "nf4"},
    )
    target = workdir / "export" / "adapter"
    data = ModelCard.load(card.write(target, workdir, settings, kind="adapter", base=base)).data
    assert data.to_dict() == {
        "base_model": "Maker/Base-1",
        "library_name": "peft",
        "license": "other",
        "license_name": "own",
        "datasets": ["maker/rows", "maker/held"],
        "tags": ["jaxtune", "lora", "dora"],
    }
    text = (target / "README.md").read_text()
    assert f"[Maker/Base-1](https://huggingface.co/Maker/Base-1) at `{'0a' * 20}`" in text
    assert 'from_pretrained("Maker/Base-1", revision="v2")' in text
    assert 'jaxtune.load("Maker/Base-1@v2", quant="nf4")' in text
    assert "In training the base was held in nf4." in text
    assert "[maker/held](https://huggingface.co/datasets/maker/held), split `test`" in text


def test_a_base_of_the_cache_is_found_there(workdir, tmp_path, monkeypatch):
    base = tmp_path / "cache" / "models--maker--seeing"
    snapshot = base / "snapshots" / ("1b" * 20)
    snapshot.mkdir(parents=True)
    (base / "refs").mkdir()
    (base / "refs" / "main").write_text("1b" * 20)
    (snapshot / "config.json").write_text(json.dumps({"vision_config": {}, "license": "mit"}))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    target = workdir / "export" / "adapter"
    text = card.write(target, workdir, config("maker/seeing"), kind="adapter").read_text()
    assert "1b1b" in text and "license: mit" in text
    assert 'transformers.AutoModelForImageTextToText.from_pretrained("maker/seeing")' in text


def test_what_is_missing_is_left_out(tmp_path):
    (tmp_path / "adapter").mkdir()
    file = card.write(tmp_path / "adapter", tmp_path / "none", config("base"), kind="adapter")
    titles = [line for line in file.read_text().splitlines() if line.startswith("#")]
    marked, *titles = titles
    assert marked.startswith("# jaxtune ")
    assert titles == ["# none", "## Load it", "## Data", "## Settings", "## The run"]
    assert [each.name for each in file.parent.iterdir()] == ["README.md"]
    assert "license" not in file.read_text() and "base_model" not in file.read_text()


def rewrite(file: Path, **changes) -> None:
    file.parent.mkdir(exist_ok=True)
    before = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(before | changes))


def test_an_evaluation_of_other_weights_is_left_out(workdir):
    adapter, merged = (workdir / "export" / name for name in ("adapter", "merged"))
    rewrite(merged / "export.json", **exported(workdir))

    def told(target):
        kind = "merged" if target == merged else "adapter"
        return card.write(target, workdir, config("base"), kind=kind).read_text()

    assert "answered by this, with" in told(adapter)
    assert "answered by the adapter beside its base, before it was merged, with" in told(merged)
    rewrite(merged / "export.json", step=4)
    assert "rows answered" not in told(merged)
    (adapter / "adapter_model.safetensors").write_bytes(b"others")
    assert "Held-out loss" in told(adapter) and "rows answered" not in told(adapter)


def test_losses_are_those_of_what_was_exported(workdir):
    target = workdir / "export" / "adapter"
    with (workdir / "metrics.jsonl").open("w") as file:
        for step, loss in ((0, 6.0), (4, 1.5), (8, 2.0)):
            file.write(json.dumps({"step": step, "kind": "eval", "loss": loss}) + "\n")

    def told(**changes):
        return card.write(target, workdir, config("base", **changes), kind="adapter").read_text()

    assert "**2.0000** after step 8" in told()
    rewrite(target / "export.json", step=4)
    assert "**1.5000** after step 4" in told()
    rewrite(target / "export.json", step=5)
    assert "Held-out loss" not in told()
    (target / "export.json").unlink()
    rewrite(workdir / "summary.json", eval_step=4)
    assert "**1.5000** after step 4" in told()
    assert "**2.0000** after step 8" in told(checkpoint={"best": False})


def test_an_adapter_from_elsewhere_has_no_card_of_this_run(workdir):
    target = workdir / "export" / "adapter"
    rewrite(target / "export.json", adapter="maker/adapter")
    assert card.write(target, workdir, config("base"), kind="adapter") is None
    assert not (target / "README.md").exists()


def test_a_directory_that_will_have_another_name(workdir):
    target = workdir / "export" / "adapter"
    file = card.write(target, workdir, config("base"), kind="adapter", name="final")
    assert 'from_pretrained(base, "final")' in file.read_text()
    assert '"adapter"' not in file.read_text()


def test_a_rank_that_doubled_is_told_as_written(workdir):
    target = workdir / "export" / "adapter"
    (target / "adapter_config.json").write_text(json.dumps({"r": 4}))
    text = card.write(target, workdir, config("base"), kind="adapter").read_text()
    assert "adapter of rank 4 for" in text


def test_an_edited_card_is_left_as_it_is(workdir):
    target = workdir / "export" / "adapter"
    first = card.write(target, workdir, config("base"), kind="adapter")
    assert not card.edited(first)
    again = card.write(target, workdir, config("other"), kind="adapter")
    assert again == first and "`other`" in first.read_text()
    for own in ("# Mine\n", first.read_text() + "\nMore of it.\n"):
        first.write_text(own)
        curve = target / "curve.svg"
        curve.write_text("mine")
        assert card.write(target, workdir, config("base"), kind="adapter") is None
        assert (first.read_text(), curve.read_text()) == (own, "mine")


def test_an_edited_card_is_carried_to_what_replaces_its_directory(workdir, tmp_path):
    target, new = workdir / "export" / "adapter", tmp_path / "adapter.unverified"
    new.mkdir()
    assert not card.carry(target, new)  # there is none
    card.write(target, workdir, config("base"), kind="adapter")
    assert not card.carry(target, new)
    (target / "README.md").write_text("# Mine\n")
    assert card.carry(target, new)
    assert (new / "README.md").read_text() == "# Mine\n"
    (tmp_path / "merged.md").write_text("# Mine\n")
    assert not card.carry(tmp_path / "merged.npz", tmp_path / "merged.unverified.npz")


def test_long_curves_are_drawn_of_few_points(tmp_path):
    points = [(step, float(step % 2)) for step in range(1, 2001)]
    thin = card_facts._thinned(points)
    assert len(thin) == card_facts.MOST_DRAWN and thin[0] == (2.5, 0.5)
    assert card_facts._thinned(points[:3]) == [(1, 1), (2, 0), (3, 1)]
    assert card_facts._thinned([]) == []


@pytest.mark.parametrize(
    "text, public",
    [
        ("at /home/me/runs/x: 3", "at x: 3"),
        ("~/models/base", "base"),
        ("C:\\Users\\me\\base", "base"),
        ("https://huggingface.co/a/b and/or 3/4", "https://huggingface.co/a/b and/or 3/4"),
    ],
)
def test_paths_lose_their_folders(text, public):
    assert markdown.public(text) == public


def test_kinds_are_told(tmp_path):
    with pytest.raises(ValueError, match="kind 'gguf': expected one of adapter, merged, npz"):
        card.write(tmp_path, tmp_path, config("base"), kind="gguf")
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(ValueError, match=r"summary\.json is no JSON"):
        card.write(tmp_path, tmp_path, config("base"), kind="adapter")
    assert os.listdir(tmp_path) == ["summary.json"]
