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


def test_what_is_missing_is_left_out(tmp_path):
    (tmp_path / "adapter").mkdir()
    file = card.write(tmp_path / "adapter", tmp_path / "none", config("base"), kind="adapter")
    titles = [line for line in file.read_text().splitlines() if line.startswith("#")]
    marked, *titles = titles
    assert marked.startswith("# jaxtune ")
    assert titles == ["# none", "## Load it", "## Data", "## Settings", "## The run"]
    assert [each.name for each in file.parent.iterdir()] == ["README.md"]
    assert "license" not in file.read_text() and "base_model" not in file.read_text()


def test_a_rank_that_doubled_is_told_as_written(workdir):
    target = workdir / "export" / "adapter"
    (target / "adapter_config.json").write_text(json.dumps({"r": 4}))
    text = card.write(target, workdir, config("base"), kind="adapter").read_text()
    assert "adapter of rank 4 for" in text
