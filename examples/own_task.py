"""A task outside the package: what kind of thing a receipt is for, with a metric of its own.

    python -m examples.own_task

This file is the task: a config names it by its path, `data.task="examples/own_task.py"`. Run as a
script, it writes some receipts, tunes the bundled base on them, and shows the metrics.
"""

import json
import random
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jaxtune
from jaxtune.data.errors import RowError
from jaxtune.metrics import Prediction, mean

COLUMNS = {"item": "what was bought", "kind": "what kind of thing it is"}
KINDS = {
    "food": ("bread", "milk", "rice", "tea", "honey"),
    "tools": ("hammer", "saw", "nails", "drill", "rope"),
    "clothes": ("coat", "socks", "scarf", "boots", "hat"),
}


def prefix(record: Mapping[str, Any], place: str) -> str:
    """Returns the prompt: one line of a receipt."""
    return f"{record['item']} is "


def suffix(record: Mapping[str, Any], place: str) -> str:
    """Returns the kind; raises RowError for one that is not known."""
    if record["kind"] not in KINDS:
        raise RowError(place, f"column 'kind' is {record['kind']!r}; expected {', '.join(KINDS)}")
    return record["kind"]


def known(row: Prediction) -> float:
    """Returns 1 if an answer is one of the kinds, right or wrong."""
    return float(row.answer.strip() in KINDS)


def right(row: Prediction) -> float:
    """Returns 1 if an answer is the kind of its row."""
    return float(row.answer.strip() == row.references[0])


METRICS = (mean("right", right), mean("known", known))


def receipts(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Returns rows of random items with their kinds."""
    draw, found = random.Random(seed), []
    for _ in range(count):
        kind = draw.choice(list(KINDS))
        found.append({"item": f"{draw.choice(KINDS[kind])}, {draw.randint(1, 9)}", "kind": kind})
    return found


def main(steps: int = 30) -> dict[str, float]:
    """Tunes the base on receipts, and prints and returns the metrics before and after."""
    from examples.rows import BASE  # the task itself needs nothing beside it

    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "receipts.jsonl"
        rows.write_text("".join(json.dumps(row) + "\n" for row in receipts(200)))
        config = {
            "steps": steps,
            "model": {"path": BASE},
            "data": {"source": str(rows), "task": __file__},
            "optim": {"lr": 4e-3},
            "batch": {"rows": 16, "max_length": 20},
            "eval": {"holdout": 16, "answers": 16, "every": None},
            "generate": {"max_new_tokens": 8, "batch": 16},
            "checkpoint": {"metric": "right"},
        }
        jaxtune.fit(config, Path(folder) / "run")
        model, variables = jaxtune.load(BASE)
        tuned = jaxtune.load_adapter(model, variables, Path(folder) / "run/export/adapter")
        given = {"max_length": 20, "max_new_tokens": 8, "batch": 16}  # as in the run
        before, after = (
            jaxtune.evaluate(model, each, receipts(32, seed=1), __file__, **given)
            for each in (variables, tuned)
        )
    for name in after.figures:
        print(f"{name}: {before.figures[name].value:.2f} -> {after.figures[name].value:.2f}")
    print(f"loss: {before.loss:.3f} -> {after.loss:.3f}")
    return {name: figure.value for name, figure in after.figures.items()}


if __name__ == "__main__":
    main()
