"""The sections of a card tell what is known, and no more."""

import json
import re

import pytest

import jaxtune
from jaxtune.export import card
from tests.export.cards import SECRET, config, rewrite


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


def test_names_from_elsewhere_are_no_markup(workdir, tmp_path):
    strange = "a`b|[c](d)<script>\n# e\x1b[31m"
    base, target = tmp_path / strange / "b`|<i>ase", workdir.with_name(strange) / "export" / strange
    workdir.rename(workdir.with_name(strange))
    (target.parent / "adapter").rename(target)
    rewrite(target / "export.json", warnings=["merging <b>changed</b> 3 of 8 answers"])
    rewrite(target.parents[1] / "eval.json", remarks=["<img src=x> | `odd`"])
    rewrite(target.parents[1] / "summary.json", devices="1 × <cpu>")
    written = config(base, tmp_path / "r|o`ws<br>.csv", eval={"split": "te`st|<u>"})
    file = card.write(target, target.parents[1], written, kind="adapter")
    text = file.read_text()
    outside_code = re.sub(r"(`+).*?\1", "", re.sub(r"(?s)```.*?```", "", text))
    for markup in ("<script>", "<i>", "<b>", "<img", "<br>", "<u>", "<cpu>"):
        assert not re.search(rf"(?<!\\){re.escape(markup)}", outside_code), markup
    assert "\x1b" not in text and "\n# e" not in text
    assert r"# a\`b\|\[c\](d)\<script\>\\n# e\\x1b\[31m" in text.splitlines()
    assert r"**Warning:** merging \<b\>changed\</b\> 3 of 8 answers." in text.splitlines()
    assert (
        r'model = peft.PeftModel.from_pretrained(base, "a`b|[c](d)<script>\n# e\x1b[31m")' in text
    )


def test_the_tokenizer_of_an_export_is_told_and_loaded(workdir):
    target = workdir / "export" / "adapter"
    held = ["chat_template.jinja", "tokenizer.json"]
    rewrite(target / "export.json", tokenizer=held)
    (target / "tokenizer.json").touch()
    text = card.write(target, workdir, config("base"), kind="adapter").read_text()
    assert (
        "It holds the tokenizer of the run (`chat_template.jinja`, `tokenizer.json`), with the "
        "chat template that the run used."
    ) in text
    assert '\ntokenizer = transformers.AutoTokenizer.from_pretrained("adapter")\n' in text


@pytest.mark.parametrize(
    "content", ["[1]", "{", '{"files": []}', '{"tuned": 3}', "\x00", "9" * 9999]
)
@pytest.mark.parametrize(
    "name",
    [
        "summary.json",
        "eval.json",
        "export/adapter/export.json",
        "export/adapter/adapter_config.json",
        "eval/tuned-1/about.json",
    ],
)
def test_damaged_records_are_told_by_name(name, content, workdir):
    (workdir / name).write_text(content)
    target = workdir / "export" / "adapter"
    fits = (content == '{"files": []}' and name in ("eval.json", "eval/tuned-1/about.json")) or (
        name.endswith("adapter_config.json") and content.startswith("{") and len(content) > 1
    )
    if fits:  # nothing that a card reads
        assert card.write(target, workdir, config("base"), kind="adapter")
        return
    with pytest.raises(ValueError, match=f"{name} is not valid"):
        card.write(target, workdir, config("base"), kind="adapter")
    assert not (target / "README.md").exists()


def test_lines_of_others_in_the_journal_are_passed_over(workdir):
    target = workdir / "export" / "adapter"
    with (workdir / "metrics.jsonl").open("ab") as file:
        file.write(
            b'\n[1]\n5\n{"step":"a"}\n{"kind":"eval","step":1,"loss":NaN}\n\xff\n' + b"[" * 99_999
        )
    text = card.write(target, workdir, config("base"), kind="adapter").read_text()
    assert "**2.0000** after step 8" in text


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04 torn", b"[1]"])
def test_a_damaged_survey_is_left_out(content, workdir):
    (workdir / ".train.npz").write_bytes(content)
    file = card.write(workdir / "export/adapter", workdir, config("base"), kind="adapter")
    assert "rows with" not in file.read_text()
