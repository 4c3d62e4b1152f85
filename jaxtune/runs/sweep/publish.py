"""Writes the leaderboard of a sweep as JSON, CSV and HTML, and the config of the best trial."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxtune.files import write_json, write_text
from jaxtune.runs.sweep import page
from jaxtune.runs.sweep.board import Entry, entries
from jaxtune.runs.sweep.study import Study
from jaxtune.runs.sweep.variants import overridden
from jaxtune.runs.sweep.winner import BEST, write_config

JSON, CSV, HTML = "leaderboard.json", "leaderboard.csv", "leaderboard.html"


def write(study: Study, workdir: Path) -> list[Entry]:
    """Writes the leaderboard's files and the config of the best trial; returns the entries."""
    found = entries(study)
    write_json(workdir / JSON, [each.content for each in found])
    write_text(workdir / CSV, _csv(found))
    write_text(workdir / HTML, page.written(study.spec, found, workdir.resolve().name))
    if found and found[0].state == "complete":
        best, spec = found[0], study.spec
        about = (
            f"Trial {best.number} of the sweep {workdir.resolve().name}: {spec.metric} "
            f"{best.metric:.6g} after {best.steps} steps."
        )
        write_config(workdir / BEST, overridden(spec.config, best.overrides), about)
    return found


def _csv(found: Sequence[Entry]) -> str:
    keys = list(dict.fromkeys(key for each in found for key in each.overrides))
    names = ["number", "state", "metric", "steps", "seconds", "directory", "reason"]
    out = io.StringIO()
    writer = csv.DictWriter(out, [*names, *keys], lineterminator="\n", restval="")
    writer.writeheader()
    for each in found:
        row = {name: getattr(each, name) for name in names}
        writer.writerow(row | dict(_cells(each.overrides)))
    return out.getvalue()


def _cells(overrides: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in overrides.items():
        yield key, json.dumps(value) if isinstance(value, list) else value
