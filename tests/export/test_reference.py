"""The other process that runs transformers and PEFT, and what it cannot be asked."""

from dataclasses import replace

import pytest

from jaxtune.display.progress import Quiet
from jaxtune.export import reference
from jaxtune.export.write import write_verified
from tests.export.exports import FLOAT32, tuned


@pytest.mark.slow
def test_another_process_runs_transformers(base, given, adapter):
    found = write_verified(tuned(base), replace(adapter, outside=True), given, Quiet())
    assert found.report["reference"]["logits"] <= FLOAT32
    assert found.report["reference"]["alike"] == 2


def test_what_transformers_cannot_be_asked(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"transformers cannot read \.npz files such as"):
        reference.check(tmp_path / "x.npz")
    monkeypatch.setattr(reference.importlib.util, "find_spec", lambda name: name != "peft" or None)
    with pytest.raises(ValueError, match="but peft cannot be imported: pip install peft"):
        reference.check(None)
