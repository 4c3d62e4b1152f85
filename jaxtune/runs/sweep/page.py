"""The HTML page of a sweep: one file without scripts that needs no network."""

import html
from collections.abc import Iterator, Sequence
from typing import Any

from jaxtune.display.parallel import Column, dots, parallel, shares, spreads
from jaxtune.display.plots import curves
from jaxtune.display.progress import duration
from jaxtune.display.tables import Table
from jaxtune.runs.sweep.board import Entry
from jaxtune.runs.sweep.importance import importances, over_seeds
from jaxtune.runs.sweep.space import Range, label, text
from jaxtune.runs.sweep.spec import Spec

CURVES = 6  # learning curves, of the best trials: as many as there are colours
STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2rem auto;padding:0 1rem;"
    "color-scheme:light dark}table{border-collapse:collapse}td,th{padding:.2rem .8rem .2rem 0;"
    "text-align:left}td{font-variant-numeric:tabular-nums}svg{max-width:100%;height:auto}"
)


def written(spec: Spec, found: Sequence[Entry], name: str) -> str:
    """Returns the page of a sweep with these trials, best first."""
    title = html.escape(f"Sweep {name}")
    counts = {state: sum(each.state == state for each in found) for state in _states(found)}
    told = ", ".join(f"{count} {state}" for state, count in counts.items())
    aim = "higher" if spec.higher else "lower"
    about = (
        f"{len(found)} trials by {spec.sampler}: {told}. Metric: {spec.metric}, {aim} is better."
    )
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{title}</title>\n'
        f"<style>{STYLE}</style>\n<h1>{title}</h1>\n<p>{html.escape(about)}</p>\n"
        + "".join(_sections(spec, found))
        + "</html>\n"
    )


def _states(found: Sequence[Entry]) -> list[str]:
    return list(dict.fromkeys(each.state for each in found))


def _sections(spec: Spec, found: Sequence[Entry]) -> Iterator[str]:
    """Yields the sections of the page; those without anything to draw are left out."""
    measured = [each for each in found if each.metric is not None]
    complete = [(each.overrides, each.metric) for each in found if each.state == "complete"]
    if measured:
        yield _section("Parallel coordinates", _parallel(spec, measured))
    if len(complete) > 1:
        values = importances(complete, spec.space.ranged)
        title = f"share of the variance of {spec.metric} that a key explains by itself"
        yield _section("Importance of each key", shares(values, title))
    if measured:
        yield _section("Hyperparameters", "".join(_dots(spec, measured)))
        lines = {f"trial {each.number}": each.curve for each in measured[:CURVES] if each.curve}
        if lines:
            drawn = curves(lines, title=f"{spec.metric} of the best trials", y_label=spec.metric)
            yield _section("Learning curves", drawn)
    if seeds := over_seeds(complete):
        rows = [(text(rest), values, interval) for rest, values, interval in seeds]
        yield _section(
            "Spread over seeds, with 95 % intervals of the mean", spreads(rows, spec.metric)
        )
    yield _section("Trials", _table(spec, found))


def _section(title: str, content: str) -> str:
    return f"<h2>{html.escape(title)}</h2>\n{content}"


def _title(entry: Entry) -> str:
    return f"{entry.number}: {text(entry.overrides)}"


def _column(spec: Spec, key: str, found: Sequence[Entry]) -> Column:
    """Returns the values of a key; lists are drawn as texts."""
    known = {each.key: each.values for each in spec.space.dimensions}.get(key)
    log = isinstance(known, Range) and known.log
    return Column(key, tuple(_drawable(each.overrides.get(key)) for each in found), log)


def _drawable(value: Any) -> float | str | None:
    return value if value is None or type(value) in (int, float) else label(value)


def _keys(found: Sequence[Entry]) -> list[str]:
    return list(dict.fromkeys(key for each in found for key in each.overrides))


def _result(spec: Spec, found: Sequence[Entry]) -> Column:
    return Column(spec.metric, tuple(each.metric for each in found))


def _parallel(spec: Spec, found: Sequence[Entry]) -> str:
    columns = [_column(spec, key, found) for key in _keys(found)]
    worst = max(1, len(found) - 1)
    ranks = [place / worst for place in range(len(found))]
    titles = [f"{_title(each)}: {each.metric:.5g}" for each in found]
    return parallel([*columns, _result(spec, found)], ranks, titles)


def _dots(spec: Spec, found: Sequence[Entry]) -> Iterator[str]:
    titles = [f"{_title(each)}: {each.metric:.5g}" for each in found]
    for key in _keys(found):
        yield dots(_column(spec, key, found), _result(spec, found), titles)


def _table(spec: Spec, found: Sequence[Entry]) -> str:
    heads = ["trial", "state", spec.metric, "steps", "time", "overrides", "directory", "reason"]
    rows = [dict(zip(heads, _cells(each), strict=True)) for each in found]
    return Table(heads, rows).html()


def _cells(entry: Entry) -> list[str]:
    metric = "" if entry.metric is None else f"{entry.metric:.5g}"
    cells = (
        entry.number,
        entry.state,
        metric,
        entry.steps,
        duration(entry.seconds),
        text(entry.overrides),
        entry.directory,
        entry.reason,
    )
    return list(map(str, cells))
