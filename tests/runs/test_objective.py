"""Runs whose objective and task come from files of the user."""

import json

import pytest

import launch
from jaxtune.config import load as configs
from jaxtune.display.errors import UserError
from jaxtune.display.progress import Quiet
from jaxtune.evaluation.compare import compare
from jaxtune.runs.run import fit
from tests import tiny

MARGIN = """
from flax import struct

@struct.dataclass
class Margin:
    METRICS = {"sure": True}
    power: int = struct.field(pytree_node=False, default=1)

    def weight(self, batch):
        return batch.weights.sum()

    def __call__(self, forward, batch):
        chances = forward.log_probs(batch)
        sure = ((chances > -5.5) * batch.weights).sum()
        return -(chances * batch.weights).sum(), {"sure": sure}

def get_objective():
    return Margin()
"""
TASK = """
from jaxtune.metrics.exact import EXACT

COLUMNS = {"theme": "what the row is about", "answer": "the text to learn"}
METRICS = (EXACT,)

def prefix(record, place):
    return f"{record['theme']}:"

def suffix(record, place):
    return f" {record['answer']}"
"""


def lines(workdir, kind) -> list[dict]:
    found = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [each for each in found if each["kind"] == kind]


@pytest.fixture
def values(base, rows):
    return tiny.settings(
        base,
        rows,
        steps=4,
        optim={"lr": 0.03},
        eval={"holdout": 8, "every": 2},
        log={"every": 2},
        checkpoint={"every": 2},
        generate={"max_new_tokens": 4},
    )


@pytest.mark.slow
def test_a_run_minimises_the_objective_of_a_file(values, tmp_path):
    """Its metric is logged, evaluated, chooses the best checkpoint; a change of the file counts."""
    file = tmp_path / "margin.py"
    file.write_text(MARGIN)
    config = configs.parse(
        {**values, "objective": str(file)} | {"checkpoint": {"every": 2, "metric": "sure"}}
    )
    summary = fit(config, tmp_path / "own", progress=Quiet())
    plain = fit(configs.parse(values), tmp_path / "plain", progress=Quiet())
    for kind in ("train", "eval"):
        ours, theirs = (lines(tmp_path / name, kind) for name in ("own", "plain"))
        for mine, other in zip(ours, theirs, strict=True):
            assert 0 <= mine.pop("sure") <= 1 and "sure" not in other
            assert mine["loss"] == pytest.approx(other["loss"], rel=1e-5)
    best = max(lines(tmp_path / "own", "eval")[1:], key=lambda line: line["sure"])
    assert summary["eval_step"] == best["step"] and summary["verified"]
    assert plain["eval_loss"] == pytest.approx(
        min(e["loss"] for e in lines(tmp_path / "own", "eval"))
    )
    card = (tmp_path / "own/export/adapter/README.md").read_text()
    assert (
        "Held-out sure: " in card and "Held-out loss: " in card and "per scored token" not in card
    )
    drawn = (tmp_path / "own/export/adapter/curve.svg").read_text()
    assert drawn.count("<svg") == 3 and 'aria-label="loss; sure"' in drawn
    found = compare(config, tmp_path / "own", progress=Quiet())["tuned"]
    assert found["objective"]["sure"] == pytest.approx(best["sure"], abs=1e-6)
    assert found["perplexity"] is None
    file.write_text(MARGIN + "# another\n")
    with pytest.raises(UserError, match=r"begun with other files:\n  objective: margin\.py had"):
        fit(config, tmp_path / "own", progress=Quiet())


@pytest.mark.parametrize(
    "text, problem",
    [
        ("x = 1\n", r"margin\.py has no get_objective\(\); define a function of that name"),
        ("def get_objective():\n    return 3\n", r"found int; expected a function of .*margin\.py"),
        ("def get_objective():\n    1 / 0\n", r"get_objective\(\) of .* failed: ZeroDivisionError"),
        ("import nowhere_at_all\n", r"margin\.py, line 1: ModuleNotFoundError"),
        (None, r"margin\.py: no such file"),
    ],
)
def test_a_file_that_gives_no_objective_is_one_message(text, problem, values, tmp_path):
    file = tmp_path / "margin.py"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError, match=problem):
        fit(configs.parse({**values, "objective": str(file)}), tmp_path / "run", progress=Quiet())


@pytest.mark.slow
def test_a_task_in_a_file(values, tmp_path, capsys):
    file, rows, config = tmp_path / "themes.py", tmp_path / "rows.jsonl", tmp_path / "config.py"
    file.write_text(TASK)
    records = [{"theme": "sea", "answer": "blue"}, {"theme": "moss", "answer": "green"}] * 6
    rows.write_text("".join(json.dumps(each) + "\n" for each in records))
    data = {"source": str(rows), "task": str(file), "workers": 0}
    evaluation = {"holdout": 4, "answers": 2}
    given = {**values, "data": data, "eval": evaluation, "steps": 1}
    config.write_text(f"def get_config():\n    return {given!r}\n")
    assert launch.main(["train", "--config", str(config), "--workdir", str(tmp_path / "run")]) == 0
    assert "exact" in lines(tmp_path / "run", "answers")[-1]


@pytest.mark.parametrize(
    "text, problems",
    [
        ("", ["COLUMNS is missing; expected a dictionary", "METRICS is missing; expected a tuple"]),
        (TASK.replace("METRICS = (EXACT,)", "METRICS = ['exact']"), [r"METRICS is \['exact'\]"]),
        (TASK.replace("def prefix", "def before"), [r"prefix is missing; expected a function"]),
    ],
)
def test_a_file_that_is_no_task_is_one_message(text, problems, values, tmp_path):
    file = tmp_path / "themes.py"
    file.write_text(text)
    given = {**values, "data": {**values["data"], "task": str(file)}}
    for problem in problems:
        with pytest.raises(
            UserError, match=rf"data\.task: .*themes\.py is no task:[\s\S]*{problem}"
        ):
            fit(configs.parse(given), tmp_path / "run", progress=Quiet())
