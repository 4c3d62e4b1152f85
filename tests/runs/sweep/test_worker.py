"""Workers: what they record, how they go on after a kill, and how several share a study."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("optuna")

from jaxtune.config import load as configs
from jaxtune.display.errors import UserError
from jaxtune.runs.signals import Stopped
from jaxtune.runs.sweep.space import log
from tests.runs.sweep.studies import GRID, Sums, config, finish, spec, work

ROOT = Path(__file__).parents[3]
KEYS = ["number", "overrides", "directory", "state", "metric", "steps", "seconds"]


def test_a_sweep_leaves_a_leaderboard_and_the_best_config(tmp_path):
    found = finish(spec(), tmp_path)
    written = json.loads((tmp_path / "leaderboard.json").read_text())
    assert [list(each) for each in written] == [KEYS] * 6
    assert written[0] == {
        "number": 2,
        "overrides": {"optim.lr": 0.01, "seed": 0},
        "directory": "trials/0002",
        "state": "complete",
        "metric": 0.05,
        "steps": 20,
        "seconds": 2.0,
    }
    assert [each["metric"] for each in written] == sorted(each.metric for each in found)
    rows = list(csv.DictReader((tmp_path / "leaderboard.csv").open()))
    assert [row["number"] for row in rows] == [str(each.number) for each in found]
    assert rows[0]["optim.lr"] == "0.01"
    best = configs.load(tmp_path / "best.py")
    assert (best.optim.lr, best.seed, best.steps) == (0.01, 0, 20)
    assert best == configs.load(tmp_path / "trials/0002/config.py")


def test_the_page_needs_no_network_and_escapes_what_it_shows(tmp_path):
    finish(spec({**GRID, "data.split": ["<script>x</script>", "b"]}), tmp_path)
    page = (tmp_path / "leaderboard.html").read_text()
    for title in ("Parallel", "Importance", "Hyperparameters", "Learning curves", "Spread over"):
        assert f"<h2>{title}" in page
    assert "<script" not in page and "&lt;script&gt;" in page
    linked = page.replace("http://www.w3.org/2000/svg", "")
    assert "http" not in linked and "src=" not in linked and "@import" not in linked


def test_a_higher_metric_is_better_where_the_metric_says_so(tmp_path):
    base = config(eval={"holdout": 8, "every": 5, "answers": 2})
    found = finish(spec(base=base, metric="exact"), tmp_path)
    assert found[0].number == 2 and found[0].metric == 1.0


def test_without_a_best_checkpoint_the_last_evaluation_counts(tmp_path):
    class Rising(Sums):
        def outcome(self, trial):
            report = trial.report
            object.__setattr__(
                trial, "report", lambda step, values: report(step, {"loss": float(step)})
            )
            return super().outcome(trial)

    found = finish(spec(base=config(checkpoint={"best": False})), tmp_path / "last", Rising())
    assert found[0].metric == 20.0
    assert finish(spec(), tmp_path / "best", Rising())[0].metric == 5.0


def test_a_failed_trial_is_recorded_and_the_rest_go_on(tmp_path):
    space = {"batch.accumulate": [3, 4], "batch.rows": [8]}
    found = finish(spec(space), tmp_path)
    assert [each.state for each in found] == ["complete", "failed"]
    assert "8 rows cannot be split into 3" in found[1].reason
    assert "reason" in json.loads((tmp_path / "leaderboard.json").read_text())[1]


@pytest.mark.parametrize("pruner", ["median", "halving", "hyperband"])
def test_hopeless_trials_are_pruned(pruner, tmp_path):
    space = {"optim.lr": [0.01, 0.02, 0.03, 0.04, 0.05, 1.0, 10.0, 100.0]}
    found = finish(spec(space, pruner=pruner), tmp_path)
    pruned = [each for each in found if each.state == "pruned"]
    assert pruned and all(each.steps < 20 for each in pruned)
    assert found[0].number == 0 and found[0].state == "complete"


def test_a_worker_that_stops_gives_its_trial_back_and_another_goes_on(tmp_path):
    def stop(trial):
        if trial.number == 3:
            raise Stopped(15, "stopped")

    with pytest.raises(Stopped), work(spec(), tmp_path, Sums(before=stop)) as first:
        first.run()
    second = Sums()
    found = finish(spec(), tmp_path, second, place="elsewhere")  # nobody waits for a sign of life
    assert second.ran == [3, 4, 5] and {each.state for each in found} == {"complete"}


def test_complete_trials_are_never_repeated(tmp_path):
    found, again = finish(spec(), tmp_path), Sums()
    assert finish(spec(), tmp_path, again) == found and again.ran == []


def test_a_worker_that_was_taken_over_records_nothing(tmp_path):
    def take(trial):
        """Another machine takes the trial over, as if this one had been asleep."""
        if trial.number == 0:
            with work(spec(), tmp_path, Sums(), place="elsewhere") as other:
                other.leases._alive = lambda claim: False
                assert other.leases.take(0) is not None

    sums = Sums(before=take)
    with work(spec(), tmp_path, sums) as first:
        with pytest.raises(UserError, match="taken over"):
            first.run()
        assert first.study.trial(0).state.name == "RUNNING"


def test_a_storage_that_is_gone_is_no_fault_of_the_trial(tmp_path, monkeypatch):
    def gone(*_):
        raise RuntimeError("disk full")

    with work(spec(), tmp_path, Sums()) as first:
        monkeypatch.setattr(first.study.storage, "set_trial_intermediate_value", gone)
        with pytest.raises(
            UserError, match=r"trial 0: the study did not record step 5 \(disk full"
        ):
            first.run()
    assert finish(spec(), tmp_path)[0].number == 2


def test_an_executor_may_take_several_trials(tmp_path):
    together = Sums(most=4)
    assert len(finish(spec(), tmp_path, together)) == 6
    assert together.ran == list(range(6)) and together.taken == [4, 2]


def test_a_worker_leaves_others_their_share(tmp_path):
    together = Sums(most=8)
    with work(spec(), tmp_path, together) as first, work(spec(), tmp_path, Sums()):
        first.run()
    # Of 6 trials 3, of the 3 that are left 2, and then the last.
    assert together.taken == [3, 2, 1]


def test_an_objective_of_ones_own(tmp_path):
    def size(directory):
        if directory.name == "0001":
            raise OSError("no file")
        return float("nan") if directory.name == "0002" else float(directory.name)

    found = finish(spec(), tmp_path, objective=size)
    assert [each.number for each in found] == [0, 3, 4, 5, 1, 2]
    assert found[-2].reason == "objective: OSError: no file"
    assert found[-1].reason == "objective: it is nan"


def test_tpe_finds_the_better_learning_rates(tmp_path):
    found = finish(spec({"optim.lr": log(1e-6, 1.0)}, trials=24, sampler="tpe"), tmp_path)
    assert abs(found[0].overrides["optim.lr"] / 0.01 - 1) < 0.5
    later = [each.metric for each in found if each.number >= 16]
    earlier = [each.metric for each in found if each.number < 8]
    assert sum(later) / len(later) < sum(earlier) / len(earlier)


WORKER = """
import sys, time
from pathlib import Path
from tests.runs.sweep.studies import Sums, finish, spec

def slowly(trial):
    with open(sys.argv[2], "a") as file:
        file.write(f"{trial.number}\\n")
    time.sleep(0.1)

finish(spec({"optim.lr": [n / 1000 for n in range(1, 11)], "seed": [0, 1]}), Path(sys.argv[1]),
       Sums(before=slowly))
"""


@pytest.mark.slow
def test_processes_that_are_killed_and_started_again_lose_and_repeat_no_trial(tmp_path):
    """Three processes on one journal file, of which two are killed; each trial ends once."""
    ran = tmp_path / "ran"
    command = [sys.executable, "-c", WORKER, tmp_path / "sweep", ran]
    env = dict(os.environ, PYTHONPATH=os.pathsep.join([str(ROOT), *sys.path]))
    processes = [subprocess.Popen(command, env=env, cwd=ROOT) for _ in range(3)]
    while not ran.exists() or ran.read_text().count("\n") < 4:
        assert any(each.poll() is None for each in processes)
        time.sleep(0.02)
    for each in processes[:2]:
        each.send_signal(signal.SIGKILL)
    assert processes[2].wait() == 0
    counts = Counter(map(int, ran.read_text().split()))
    # A trial that was under way in a killed process began twice; no other did.
    assert sorted(counts) == list(range(20)) and sum(counts.values()) <= 22
    left = json.loads((tmp_path / "sweep/leaderboard.json").read_text())
    alone = finish(
        spec({"optim.lr": [n / 1000 for n in range(1, 11)], "seed": [0, 1]}), tmp_path / "alone"
    )
    assert left == [each.content for each in alone]
