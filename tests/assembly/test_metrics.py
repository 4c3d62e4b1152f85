"""Metrics are found by name, in files, in installed packages, and of tasks."""

from importlib.metadata import EntryPoint, EntryPoints

import pytest

from jaxtune.assembly import metrics
from jaxtune.assembly.metrics import metrics_of
from jaxtune.display.errors import UserError
from jaxtune.metrics.exact import EXACT
from jaxtune.tasks import price

FILE = """
from jaxtune.metrics import mean

METRICS = (mean("length", lambda row: float(len(row.answer)), higher=False),)
"""


def test_names_come_before_the_task(tmp_path):
    (tmp_path / "length.py").write_text(FILE)
    assert metrics_of((), "") == (EXACT,)
    assert metrics_of((), "price") == price.METRICS
    found = metrics_of(("bleu", str(tmp_path / "length.py")), "price")
    assert [(each.name, each.higher) for each in found] == [("bleu", True), ("length", False)]


def test_a_metric_of_an_installed_package(monkeypatch):
    entry = EntryPoint("theirs", "jaxtune.metrics.rouge:ROUGE_L", metrics.GROUP)
    monkeypatch.setattr(metrics, "entry_points", lambda group: EntryPoints([entry]))
    (found,) = metrics_of(("theirs",), "")
    assert found.name == "rouge_l"


@pytest.mark.parametrize(
    "names, text, message",
    [
        (("blue",), "", "eval.metrics 'blue' is not one of 'exact', 'bleu', .*a Python file"),
        (("{}",), "x = 1", "eval.metrics: .*own.py has no METRICS; expected a tuple"),
        (("{}",), "METRICS = ['bleu']", "eval.metrics: .*own.py gives 'bleu'; expected a jaxtune"),
        (("bleu", "bleu"), "", "eval.metrics: there are several metrics called 'bleu'"),
        (("{}",), "1 / 0", "own.py, line 1: ZeroDivisionError"),
    ],
)
def test_what_is_no_metric_is_one_message(names, text, message, tmp_path):
    file = tmp_path / "own.py"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        metrics_of([name.format(file) for name in names], "")
