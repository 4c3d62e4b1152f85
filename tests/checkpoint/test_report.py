"""Reports of exports: those of others, and damaged ones, are told and not believed."""

import json

import jax
import pytest

import jaxtune
from jaxtune.checkpoint.formats.tensors import CheckpointError
from jaxtune.checkpoint.report import read_report

DAMAGED = {
    "[1]": "expected an object, found a list",
    "{}": "it lacks 'files'",
    '{"files": []}': "files: expected an object, found a list",
    '{"files": {"adapter_config.json": 5}}': "expected an object, found an integer",
    '{"files": {"a": {"bytes": 1, "sha256": null}}}': "sha256: expected a text, found null",
    '{"files": {}, "comparison": {"kept": true}}': "comparison lacks 'logits'",
    '{"files": {"../a": {"bytes": 1, "sha256": ""}}}': "an export has no files in folders",
    "\x00garbage": "is not valid JSON",
}


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_report(content, tmp_path):
    (tmp_path / "export.json").write_text(content)
    with pytest.raises(CheckpointError) as failure:
        read_report(tmp_path)
    assert DAMAGED[content] in str(failure.value) and "repair or remove it" in str(failure.value)


def test_where_a_report_is(tmp_path):
    report = {"files": {"merged.npz": {"bytes": 1, "sha256": "0"}}, "step": 3}
    assert read_report(tmp_path) == read_report(tmp_path / "merged.npz") == {}
    (tmp_path / "merged.export.json").write_text(json.dumps(report))
    assert read_report(tmp_path / "merged.npz") == report


def test_an_adapter_with_a_report_of_another(base, tmp_path):
    model, variables = jaxtune.load(base)
    adapted = jaxtune.add_lora(variables, rank=2, alpha=4.0, key=jax.random.key(0))
    jaxtune.save_adapter(adapted, tmp_path / "adapter", base)
    (tmp_path / "adapter/export.json").write_text('{"files": []}')
    with pytest.raises(CheckpointError, match=r"export\.json is not valid .*files: expected an"):
        jaxtune.load_adapter(model, variables, tmp_path / "adapter")
