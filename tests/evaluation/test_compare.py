"""What an evaluation depends on, where it finds what was tuned, and what it tells."""

import hashlib
import math
import os

import jax
import jax.numpy as jnp
import pytest

import jaxtune
from jaxtune.assembly.assemble import Assembly
from jaxtune.cli import chat
from jaxtune.config import load as configs
from jaxtune.display.progress import Quiet
from jaxtune.evaluation import compare, held_out
from jaxtune.metrics import Prediction
from jaxtune.metrics.exact import EXACT
from jaxtune.metrics.intervals import Figure, paired, summarise
from jaxtune.workdir.directory import claim, locked_directory
from jaxtune.workdir.errors import WorkdirError


@pytest.fixture(scope="module")
def about(base, rows):
    """`about(eval={…})` is what answers under these settings depend on."""

    def about(**changes):
        values = {"model": {"path": str(base)}, "data": {"source": str(rows)}}
        for section, fields in changes.items():
            values[section] = {**values.get(section, {}), **fields}
        config = configs.parse(values)
        assembly = Assembly(config, base, "2026-11-21")
        _, source = assembly.sources
        eval_rows = held_out.eval_rows(config.data, source, assembly.encoder, None)
        return compare._about(config.model, config.generate, config.seed, "", eval_rows)

    return about


def test_what_answers_depend_on(about):
    usual = about(eval={"holdout": 8})
    assert usual["rows"] == 8
    for same in (
        {"eval": {"holdout": 8, "every": 7}},
        {"eval": {"holdout": 8}, "generate": {"batch": 2}},
        {"eval": {"holdout": 8}, "data": {"workers": 0}, "optim": {"lr": 1.0}},
    ):
        assert about(**same) == usual
    others = [
        about(eval={"holdout": 8, "rows": 7}),
        about(eval={"holdout": 8}, generate={"max_new_tokens": 3}),
        about(eval={"holdout": 8}, data={"prefix": "{prefix} "}),
        about(eval={"holdout": 8}, data={"suffix": "{suffix}."}),
        about(eval={"holdout": 8}, model={"quant": "int8"}),
    ]
    assert len({held_out.digest(each) for each in [usual, *others]}) == 6


def test_rows_that_change_are_other_rows(about, rows, tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(rows.read_bytes())
    given = {"data": {"source": str(tmp_path / "rows.jsonl")}, "eval": {"holdout": 8}}
    before = about(**given)
    assert about(**given) == before
    (tmp_path / "rows.jsonl").write_text(rows.read_text().replace("#", "%"))
    assert about(**given) != before


def test_where_the_tuned_weights_are(tmp_path):
    with pytest.raises(
        ValueError, match=r"export contains no adapter or merged model: train first"
    ):
        compare.tuned_at(tmp_path, None)
    (tmp_path / "export/merged").mkdir(parents=True)
    assert compare.tuned_at(tmp_path, None) == tmp_path / "export/merged"
    (tmp_path / "export/adapter").mkdir()
    assert compare.tuned_at(tmp_path, None) == tmp_path / "export/adapter"
    assert compare.tuned_at(tmp_path / "x", str(tmp_path / "export/merged")).name == "merged"


def test_what_is_missing_is_said_before_anything_is_read(base, rows, tmp_path):
    config = configs.parse({"model": {"path": str(base)}, "data": {"source": str(rows)}})
    with pytest.raises(ValueError, match="export contains no adapter"):
        compare.compare(config, tmp_path, progress=Quiet())
    with pytest.raises(ValueError, match=r"no rows to evaluate on: set eval.source, eval.split or"):
        compare.compare(config, tmp_path, base=True, tuned=False, progress=Quiet())
    with pytest.raises(ValueError, match=r"nowhere"):
        compare.compare(config, tmp_path, adapter="./nowhere", progress=Quiet())
    assert not list(tmp_path.iterdir())


def test_the_table(tmp_path):
    first, second = (
        [Prediction(f"{n + n % most}", (str(n),), {}) for n in range(40)] for most in (2, 1)
    )
    found = {
        name: compare.Result({"loss": loss}, summarise([EXACT], rows), rows, tmp_path, tmp_path)
        for name, loss, rows in (("base", 2.5, first), ("tuned", 1.25, second))
    }
    lines = compare._table((EXACT,), {}, found, paired([EXACT], first, second))
    header, _, loss, perplexity = (line.split() for line in lines)
    assert header == ["base", "tuned", "tuned", "-", "base"]
    assert loss == ["held-out", "loss", "2.5000", "1.2500", "-1.2500", "lower", "is", "better"]
    assert perplexity == ["perplexity", "12.18", "3.49", "-8.692", "lower", "is", "better"]
    exact = lines[1]
    assert exact.startswith("exact") and exact.endswith("higher is better")
    assert "1 [1, 1]" in exact and exact.count("0.5 [0.3") == 2
    (name, _, loss, last) = compare._table((EXACT,), {}, {"base": found["base"]}, {})
    assert name.split() == ["base"] and loss.split()[:3] == ["held-out", "loss", "2.5000"]
    assert last.split()[:2] == ["perplexity", "12.18"]
    assert compare._shown(Figure(None, None, None)) == "-"


@pytest.mark.parametrize("loss", [710.0, math.inf, math.nan])
def test_a_loss_without_a_perplexity(loss, tmp_path):
    rows = [Prediction("a", ("a",), {})]
    result = compare.Result({"loss": loss}, summarise([EXACT], rows), rows, tmp_path, tmp_path)
    assert compare._content(result, [])["perplexity"] is None
    (*_, last) = compare._table((EXACT,), {}, {"base": result}, {})
    assert last.split()[:2] == ["perplexity", "nan" if math.isnan(loss) else "inf"]


def test_weights_are_told_apart_by_their_content(tmp_path):
    def written(directory, weights=b"1", scale=8):
        (tmp_path / directory).mkdir(exist_ok=True)
        (tmp_path / directory / "adapter_model.safetensors").write_bytes(weights)
        (tmp_path / directory / "adapter_config.json").write_text(f'{{"lora_alpha": {scale}}}')
        return compare._files(tmp_path / directory)

    usual = written("a")
    assert [name for name, _ in usual] == ["adapter_config.json", "adapter_model.safetensors"]
    os.utime(tmp_path / "a/adapter_model.safetensors", ns=(1, 1))
    assert compare._files(tmp_path / "a") == written("b") == written("a") == usual
    assert len({str(each) for each in (usual, written("a", b"2"), written("a", scale=16))}) == 3
    alone = compare._files(tmp_path / "b/adapter_model.safetensors")
    assert alone == usual[1:]


def test_in_the_hubs_cache_the_content_is_the_name(tmp_path):
    content = b"weights"
    blob = tmp_path / "blobs" / hashlib.sha256(content).hexdigest()
    for directory in ("blobs", "snapshot", "copy"):
        (tmp_path / directory).mkdir()
    (tmp_path / "snapshot/model.safetensors").symlink_to(blob)
    (tmp_path / "copy/model.safetensors").write_bytes(content)
    blob.touch()  # which is not read
    assert compare._files(tmp_path / "snapshot") == compare._files(tmp_path / "copy")


def test_one_evaluation_at_a_time(base, rows, tmp_path):
    given = {"data": {"source": str(rows)}, "eval": {"holdout": 2}}
    config = configs.parse({"model": {"path": str(base)}, **given})
    claim(tmp_path)
    with (
        locked_directory(tmp_path / "eval", "eval"),
        pytest.raises(WorkdirError, match="another eval is using"),
    ):
        compare.compare(config, tmp_path, base=True, tuned=False, progress=Quiet())
    assert sorted(file.name for file in tmp_path.rglob("*")) == [".lock", "eval", "run.json"]


@pytest.fixture
def loads(base, rows, tmp_path, monkeypatch):
    """Parts of a config whose weights are only named, those that were loaded, and merged ones."""
    values = {"model": {"path": str(base), "quant": "int8"}, "data": {"source": str(rows)}}
    loaded = []

    def load(self, checkpoint=None, **held):
        loaded.append((checkpoint or self.checkpoint, held))
        return "model", {}

    monkeypatch.setattr(Assembly, "base", load)
    merged = tmp_path / "merged"
    merged.mkdir()
    (merged / "config.json").write_text("{}")
    (merged / "model.safetensors").write_bytes(b"weights")
    return Assembly(configs.parse(values), base, "2026-11-21"), loaded, merged


def test_a_merged_model_is_loaded_without_its_base(loads, base, tmp_path):
    assembly, loaded, merged = loads
    alone = [(merged, {"quant": None})]
    (tuned,) = compare._candidates(assembly, merged, False, {})
    assert loaded == alone and "base" not in tuned.about
    loaded.clear()
    chat.text_generator(assembly, tmp_path, str(merged), base=False)
    assert loaded == alone
    loaded.clear()
    first, second = compare._candidates(assembly, merged, True, {})
    assert loaded == [(base, {}), *alone]
    assert second.about == tuned.about and first.about.keys() == {"base"}


def test_an_adapter_is_loaded_onto_a_base_that_is_loaded_once(loads, base, monkeypatch):
    assembly, loaded, adapter = loads
    (adapter / "adapter_config.json").write_text("{}")
    monkeypatch.setattr(compare, "load_adapter", lambda *given: {"lora": given[-1]})
    first, second = compare._candidates(assembly, adapter, True, {})
    assert loaded == [(base, {})] and second.variables == {"lora": adapter}
    assert second.about.keys() == {"base", "tuned"} and first.weights == base


@pytest.mark.slow
def test_weights_that_are_not_numbers(base, rows, tmp_path):
    model, variables = jaxtune.load(base)
    broken = jax.tree.map(lambda leaf: leaf.at[..., 0].set(jnp.nan), variables)
    place = str(jaxtune.save_merged(model, broken, tmp_path / "broken"))
    given = {"data": {"source": str(rows)}, "eval": {"holdout": 2}}
    config = configs.parse({"model": {"path": str(base)}, **given})
    with pytest.raises(held_out.LossError, match=r"broken: the held-out loss is nan for the rows"):
        compare.compare(config, tmp_path / "run", adapter=place, progress=Quiet())
    assert not (tmp_path / "run/eval.json").exists()
