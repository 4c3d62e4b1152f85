"""The notebook runs as a reader would run it, and its cells find what its text says."""

import os
import re

import nbformat
import pytest
from nbclient import NotebookClient

from tests.test_imports import ROOT

NOTEBOOK = ROOT / "examples" / "explore.ipynb"
START = ROOT / "tests" / "examples"  # a directory other than the notebook's
NEAR = 5e-5  # as in tests/checkpoint/peft: float32 on both sides, multiplied in another order
READ = "[losses[:5], losses[-5:], curve.series['held_out'], difference, effect]"
HTML = {
    "jaxtune.show(variables)": "params/layers/attn: 6 leaves|>layers: ",
    "jaxtune.show(batch, tokenizer)": 'class="scored"',
    "jaxtune.show(split(batch, 2), tokenizer)": "micro-batch 2",
    "jaxtune.show(state)": "178,176 parameters train",
    "jaxtune.show(before)": "3 answers",
    "jaxtune.show(metrics)": "gradient_norm",
    "display(jaxtune.show(after))": "3 answers",
    'jaxtune.show({"largest difference': "largest difference from PEFT",
}


def read():
    return nbformat.read(NOTEBOOK, as_version=4)


def cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def files() -> set[str]:
    """What stands where a careless notebook would write."""
    places = (ROOT, NOTEBOOK.parent, START, ROOT / "runs")
    found = (path for place in places if place.is_dir() for path in place.iterdir())
    return {str(path) for path in found if path.name != "__pycache__"}


def test_it_is_stored_without_outputs():
    nbformat.validate(read())
    for cell in cells(read()):
        assert cell.outputs == [] and cell.execution_count is None


@pytest.mark.slow
def test_it_runs_and_peft_agrees(record_property):
    notebook, before = read(), files()
    notebook.cells.append(nbformat.v4.new_code_cell(READ))
    paths = {"metadata": {"path": str(START)}}
    # Compiled as for a reader: sixty steps take longer than the optimisations that tests leave out.
    space = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    client = NotebookClient(notebook, timeout=240, kernel_name="python3", resources=paths)
    client.execute(env=space)
    assert files() == before
    for source, expected in HTML.items():
        (cell,) = (each for each in cells(notebook) if source in each.source)
        pages = [output.data["text/html"] for output in cell.outputs if "data" in output]
        assert any(re.search(expected, page) for page in pages), source
    (drawn,) = (each for each in cells(notebook) if "jaxtune.Curve(" in each.source)
    (curve,) = (each.data for each in drawn.outputs if each.output_type == "display_data")
    assert curve["text/html"].count("<polyline") == 2
    assert "loss" in curve["text/plain"] and "at step 60 (60 points)" in curve["text/plain"]
    check(eval(cells(notebook)[-1].outputs[-1].data["text/plain"]), record_property)


def check(found, record_property) -> None:
    """Losses fall, PEFT computes our logits, and without the adapter it would not."""
    first, last, held_out, difference, effect = found
    assert sum(last) < 0.6 * sum(first)
    assert held_out[-1][1] < held_out[0][1] and len(held_out) == 6
    record_property("error", difference)
    assert difference < NEAR and effect > 0.1
