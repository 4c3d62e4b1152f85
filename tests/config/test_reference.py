"""The reference of fields, as a page and at the terminal."""

from pathlib import Path

import pytest

from jaxtune.config import reference
from jaxtune.config.fields import ConfigError
from jaxtune.config.schema import FIELDS, SECTIONS

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_of_config_fields_is_current():
    told = "make it anew: python -m jaxtune.config.reference > docs/configs.md"
    assert (DOCS / "configs.md").read_text() == reference.page(), told


def test_every_field_has_a_row():
    rows = [line for line in reference.page().splitlines() if line.startswith("| `")]
    assert [line.split("`")[1] for line in rows] == list(FIELDS)
    assert all(line.replace("\\|", "").count("|") == 5 for line in rows)


def test_parts_of_it():
    whole = reference.text()
    for name in SECTIONS:
        part = reference.text(name)
        assert part in whole and part.startswith(f"{name}: ")
        own = [key for key in FIELDS if key.rpartition(".")[0] == name]
        assert own and all(f"  {key} = " in part for key in own)
    for key in FIELDS:
        part = reference.text(key)
        assert part.startswith(f"  {key} = ") and part in whole
        assert sum(f"  {other} = " in f"\n{part}" for other in FIELDS) == 1
    with pytest.raises(
        ConfigError, match=r"'optm' is not a section .* \(did you mean optim\?\); the sec"
    ):
        reference.text("optm")
