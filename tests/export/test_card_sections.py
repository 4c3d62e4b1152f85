"""The sections of a card tell what is known, and no more."""

import json

import jaxtune
from jaxtune.export import card
from tests.export.cards import SECRET, config


def test_what_a_card_tells(workdir, tmp_path):
    written = config(tmp_path / "models" / "base", tmp_path / "rows" / "palette.csv")
    file = card.write(workdir / "export" / "adapter", workdir, written, kind="adapter")
    text = file.read_text()
    for line in (
        "# palettes",
        "A LoRA adapter of rank 2 for `base` (a local checkpoint), tuned with jaxtune.",
        "Held-out loss per scored token: 6.0000 before training, **2.0000** after step 8.",
        "![Loss by step](curve.svg)",
        "2 held-out rows, answered by this model, with 95% bootstrap intervals:",
        "|  | base | tuned | tuned - base |",
        "| colour | 12 [11, 13.5] | 4 [3, 5] | -8 [-9.5, -6.5] |",
        "| none | - | - | - |",
        "| held-out loss | 6 | 2 |  |",
        "| perplexity | - | 7.389 |  |",
        "- training: `palette.csv`; 2 rows with 40 tokens, 25% of them scored",
        "- held-out: `palette.csv`; split off from the training rows",
        "| `data.prefix` | `` a\\|`b`\\n{theme}:  `` |",
        "| `trainable.rank` | `2` |",
        "The written files were compared with the model in memory on 8 rows (held-out rows):",
        "| reloaded from disk | 1.2e-05 (limit 1e-04) | 2.0e-09 | 100.00% of 128 | 8 of 8 |",
        "| merging into the original weights | 3.1e-01 | 2.0e-09 | 100.00% of 128 | 6 of 8 |",
        "- 8 steps (2 epochs), stopped early: 64 rows, 12,345 tokens",
        "- 100 of 2,000 parameters trained",
        "- 1 × cpu: 1:01, 202 tokens/s, peak memory 1.00 GiB (this process)",
    ):
        assert line in text.splitlines(), line
    assert f"- jaxtune {jaxtune.__version__}; run started 2026-01-02, card written 20" in text
    svg = (file.parent / "curve.svg").read_text()
    assert svg.count("<polyline") == 2 and "training" in svg and "held-out" in svg
    for private in (str(tmp_path), SECRET, "/home", "secret project"):
        assert private not in text + svg
    assert "see eval and hf_…" in text


def test_what_is_missing_is_left_out(tmp_path):
    (tmp_path / "adapter").mkdir()
    file = card.write(tmp_path / "adapter", tmp_path / "none", config("base"), kind="adapter")
    titles = [line for line in file.read_text().splitlines() if line.startswith("#")]
    marked, *titles = titles
    assert marked.startswith("# jaxtune ")
    assert titles == ["# none", "## Loading", "## Data", "## Settings", "## Training run"]
    assert [each.name for each in file.parent.iterdir()] == ["README.md"]
    assert "license" not in file.read_text() and "base_model" not in file.read_text()


def test_a_rank_that_doubled_is_told_as_written(workdir):
    target = workdir / "export" / "adapter"
    (target / "adapter_config.json").write_text(json.dumps({"r": 4}))
    text = card.write(target, workdir, config("base"), kind="adapter").read_text()
    assert "adapter of rank 4 for" in text
