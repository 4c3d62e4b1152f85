"""Finds the metrics that score answers: by name, in a file of the user, or those of the task."""

from collections.abc import Iterator, Sequence
from importlib.metadata import entry_points
from pathlib import Path

from jaxtune import tasks
from jaxtune.config.python_file import module_of
from jaxtune.data.errors import known
from jaxtune.display.errors import UserError
from jaxtune.metrics import Metric
from jaxtune.metrics.bleu import BLEU, BLEU4
from jaxtune.metrics.chrf import CHRF
from jaxtune.metrics.cider import CIDER
from jaxtune.metrics.exact import EXACT
from jaxtune.metrics.rouge import ROUGE_L
from jaxtune.metrics.vqa import VQA

GROUP = "jaxtune.metrics"  # entry points of installed packages, each a `Metric`
NAMED = {each.name: each for each in (EXACT, BLEU, BLEU4, CHRF, ROUGE_L, CIDER, VQA)}


def metrics_of(names: Sequence[str], task: str) -> tuple[Metric, ...]:
    """Returns the metrics that a config names, or else those of its task, or exact match.

    Args:
      names: Names of metrics, and paths of Python files whose `METRICS` lists some.
      task: The config's task, or "" if it has none.

    Returns:
      One metric or more, of different names. Raises UserError for anything that is no metric.
    """
    if not names:
        return tuple(tasks.find(task).METRICS) if task else (EXACT,)
    found = [metric for name in names for metric in _named(name)]
    titles = [each.name for each in found]
    if twice := [name for name in titles if titles.count(name) > 1]:
        raise UserError(f"eval.metrics: there are several metrics called {twice[0]!r}; name one")
    return tuple(found)


def metric_files(names: Sequence[str]) -> list[Path]:
    """Returns the files among the metrics that a config names; raises as `metrics_of` does."""
    if names:
        metrics_of(names, "")
    return [Path(module_of(name).__file__) for name in names if name.endswith(".py")]


def _named(name: str) -> Iterator[Metric]:
    if name.endswith(".py"):
        listed = getattr(module_of(name), "METRICS", None)
        if not (isinstance(listed, list | tuple) and listed):
            raise UserError(
                f"eval.metrics: {name} has no METRICS; expected a tuple of jaxtune.metrics.Metric"
            )
    elif name in NAMED:
        listed = (NAMED[name],)
    else:
        installed = entry_points(group=GROUP)
        among = [*NAMED, *sorted(installed.names), "a Python file with METRICS"]
        (entry,) = installed.select(name=known("eval.metrics", name, among))
        listed = (entry.load(),)
    for metric in listed:
        if not isinstance(metric, Metric):
            raise UserError(
                f"eval.metrics: {name} gives {tasks.short(metric)}; expected a "
                "jaxtune.metrics.Metric, such as jaxtune.metrics.mean(name, score) makes"
            )
        yield metric
