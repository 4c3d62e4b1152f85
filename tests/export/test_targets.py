"""What stands in the way of an export is not overwritten unasked."""

from dataclasses import replace

import pytest

from jaxtune.checkpoint.formats.safetensors import CheckpointError
from jaxtune.export import targets


def test_what_is_there_is_not_overwritten_unasked(adapter, tmp_path):
    adapter.target.mkdir()
    (adapter.target / "adapter_config.json").touch()
    with pytest.raises(ValueError, match="already exists: --overwrite replaces it, --to chooses"):
        targets.refuse_what_is_there(adapter)
    targets.refuse_what_is_there(replace(adapter, overwrite=True))
    (adapter.target / "adapter_config.json").rename(adapter.target / "letters.txt")
    with pytest.raises(CheckpointError, match="does not look like a checkpoint"):
        targets.refuse_what_is_there(replace(adapter, overwrite=True))
