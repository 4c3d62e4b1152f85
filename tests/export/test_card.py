"""Model cards are written with the front matter that is known, and an edited one is kept."""

import os

import pytest
import yaml
from huggingface_hub import ModelCard

from jaxtune.export import card
from tests.export.cards import config, rewrite


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
    assert "During training, the base was held in nf4." in text
    assert "[maker/held](https://huggingface.co/datasets/maker/held), split `test`" in text


def test_an_adapter_from_elsewhere_has_no_card_of_this_run(workdir):
    target = workdir / "export" / "adapter"
    rewrite(target / "export.json", adapter="maker/adapter")
    assert card.write(target, workdir, config("base"), kind="adapter") is None
    assert not (target / "README.md").exists()


def test_files_that_equal_the_model_need_no_table(workdir):
    target = workdir / "export" / "adapter"
    rewrite(
        target / "export.json", comparison=None, merging={}, same={"arrays": 21, "positions": 9}
    )
    text = card.write(target, workdir, config("base"), kind="adapter").read_text()
    assert "The written files were loaded, and their 21 arrays compared: they equal those" in text
    assert "identical answers" not in text


def test_a_directory_that_will_have_another_name(workdir):
    target = workdir / "export" / "adapter"
    file = card.write(target, workdir, config("base"), kind="adapter", name="final")
    assert 'from_pretrained(base, "final")' in file.read_text()
    assert '"adapter"' not in file.read_text()


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


def test_kinds_are_told(tmp_path):
    with pytest.raises(ValueError, match="kind 'gguf': expected one of adapter, merged, npz"):
        card.write(tmp_path, tmp_path, config("base"), kind="gguf")
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(ValueError, match=r"summary\.json is not valid JSON"):
        card.write(tmp_path, tmp_path, config("base"), kind="adapter")
    assert os.listdir(tmp_path) == ["summary.json"]
