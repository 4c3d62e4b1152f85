"""Runs from a config: what they leave, how they go on, and what stops them."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from jaxtune.config import load as configs
from jaxtune.data.errors import DataError
from jaxtune.display.progress import Quiet
from jaxtune.runs.ends import RunError
from jaxtune.runs.loop import Run
from jaxtune.runs.run import fit
from jaxtune.runs.signals import Stopped
from jaxtune.workdir.checkpoints import Checkpoints
from jaxtune.workdir.directory import run_directory
from jaxtune.workdir.errors import WorkdirError
from tests import devices
from tests.runs.conftest import STEPS

ROOT = Path(__file__).parents[2]


def contents(workdir: Path):
    """What must not depend on how often a run was interrupted."""
    checkpoints = Checkpoints(workdir / "checkpoints")
    step = checkpoints.steps[-1]
    arrays, position = checkpoints.arrays(step)
    checkpoints.close()
    # What evaluations found is in metrics.jsonl; one that a signal broke off came after the save.
    for name in ("seconds", "owed", "best_loss", "best_score", "best_step", "worse"):
        position["tally"].pop(name)
    values = {path: (array.dtype, array.tobytes()) for path, array in arrays.items()}
    adapter = (workdir / "export/adapter/adapter_model.safetensors").read_bytes()
    return step, position, (workdir / "metrics.jsonl").read_bytes(), adapter, values


def lines(workdir: Path, kind: str) -> list[dict]:
    found = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [line for line in found if line["kind"] == kind]


class At(Quiet):
    """Does something when a step is done: crash, ask to stop."""

    def __init__(self, step: int, what, verbose: bool = False):
        super().__init__(verbose=verbose)
        self.step, self.what, self.said = f"step {step}/", what, []

    def draw(self, text=""):
        if text.startswith(self.step):
            self.what()

    def say(self, text=""):
        self.said.append(text)


def crash():
    raise RuntimeError("the machine is gone")


@pytest.mark.slow
def test_what_a_run_leaves(whole, make):
    workdir, summary = whole
    left = sorted(path.name for path in workdir.iterdir() if not path.name.startswith("."))
    assert left == [
        "checkpoints", "config.json", "export", "metrics.jsonl", "run.json", "summary.json",
    ]  # fmt: skip
    assert json.loads((workdir / "summary.json").read_text()) == summary
    assert configs.parse(json.loads((workdir / "config.json").read_text())) == make()
    train = lines(workdir, "train")
    assert [line["step"] for line in train] == [2, 4, 6, 8, 10, 12]
    assert train[-1]["loss"] < train[0]["loss"] - 0.1
    evaluated = lines(workdir, "eval")
    assert [line["step"] for line in evaluated] == [0, 4, 8, 12]
    assert evaluated[-1]["loss"] < evaluated[0]["loss"]
    assert summary["steps"] == STEPS and summary["eval_step"] == 12
    assert summary["eval_loss"] == pytest.approx(evaluated[-1]["loss"], rel=1e-8)
    assert summary["eval_loss_before"] == pytest.approx(evaluated[0]["loss"], rel=1e-8)
    assert summary["tokens"] == train[-1]["tokens"] > train[-1]["scored_tokens"] > 0
    assert (workdir / "export/adapter/adapter_config.json").is_file()


@pytest.mark.slow
def test_the_banner_says_what_will_happen(make, tmp_path):
    said = At(0, None, verbose=True)
    fit(make(("steps", 1), ("mesh.fsdp", 1)), tmp_path, progress=said)
    text = "\n".join(said.said)
    assert re.search(r"training +32 rows with [\d,]+ tokens, [\d,]+ scored \(\d+%\)", text)
    assert re.search(r"batch +4 lines of 64 tokens in 2 micro-batches of 2", text)
    assert re.search(r"trains +3,360 of 52,554 parameters \(6\.39%\)", text)
    assert re.search(r"lora/layers/mlp/up/w/b +3 × 2 × 48 +288", text)
    assert "memory      frozen 192" in text and "held-out" in text


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 2, 4, 7, 11])
def test_a_run_that_crashes_goes_on_to_the_bit(step, make, whole, tmp_path):
    workdir = tmp_path / "run"
    with pytest.raises(RuntimeError, match="the machine is gone"):
        fit(make(), workdir, progress=At(step, crash))
    after = At(0, None)
    fit(make(), workdir, progress=after)
    assert any("resuming from step" in text for text in after.said) == (step > 3)
    assert contents(workdir) == contents(whole[0])


@pytest.mark.slow
def test_a_finished_run_is_not_trained_again(make, whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "run")
    before = contents(tmp_path / "run")
    again = fit(make(), tmp_path / "run", progress=Quiet())
    assert contents(tmp_path / "run") == before
    assert again["eval_loss"] == whole[1]["eval_loss"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_stops(number, make, whole, tmp_path):
    stop = At(7, lambda: os.kill(os.getpid(), number))
    with pytest.raises(Stopped, match=f"stopped by {number.name} after step 8 of 12") as stopped:
        fit(make(), tmp_path, progress=stop)
    assert stopped.value.number == number
    assert (tmp_path / "checkpoints/8").is_dir()
    fit(make(), tmp_path, progress=Quiet())
    assert contents(tmp_path) == contents(whole[0])


@pytest.mark.slow
@pytest.mark.parametrize("step", [4, 12])
def test_a_signal_breaks_an_evaluation_off_and_the_resumed_run_does_it(step, make, whole, tmp_path):
    """The state is saved at once; of a killed resume, no line of the evaluation is left twice."""

    def evaluating(what):
        found = At(0, what)
        found.step = f"step {step}: evaluating"
        return found

    with pytest.raises(Stopped, match=f"stopped by SIGTERM after step {step} of 12"):
        fit(make(), tmp_path, progress=evaluating(lambda: os.kill(os.getpid(), signal.SIGTERM)))
    assert (tmp_path / f"checkpoints/{step}").is_dir()
    assert [line["step"] for line in lines(tmp_path, "eval")][-1] == step - 4
    with pytest.raises(RuntimeError):
        fit(make(), tmp_path, progress=At(step + 1, crash) if step < 12 else evaluating(crash))
    summary = fit(make(), tmp_path, progress=Quiet())
    assert contents(tmp_path) == contents(whole[0])
    for name in ("eval_loss", "eval_step", "eval_loss_before"):
        assert summary[name] == whole[1][name]


def damage(step: Path):
    for file in (step / "state").rglob("d/*"):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_put_aside(make, whole, tmp_path):
    with pytest.raises(RuntimeError):
        fit(make(), tmp_path, progress=At(11, crash))
    newest = max(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    damage(tmp_path / f"checkpoints/{newest}")
    after = At(0, None)
    fit(make(), tmp_path, progress=after)
    line = f"damaged checkpoint moved aside: {tmp_path}/checkpoints/{newest}"
    assert any(line in text for text in after.said)
    assert (tmp_path / f"damaged/{newest}").is_dir()
    assert contents(tmp_path) == contents(whole[0])


@pytest.mark.slow
def test_where_every_checkpoint_is_damaged_nothing_is_touched(make, tmp_path):
    with pytest.raises(RuntimeError):
        fit(make(("checkpoint.best", False)), tmp_path, progress=At(5, crash))
    (tmp_path / "checkpoints/3/position/metadata").write_text("{")
    with pytest.raises(ValueError, match=r"no checkpoint in .* can be read:\n.*checkpoints/3"):
        fit(make(("checkpoint.best", False)), tmp_path, progress=Quiet())
    assert (tmp_path / "checkpoints/3/state").is_dir()


@pytest.mark.slow
def test_rows_that_changed_between_starts_are_refused_and_named(make, rows, tmp_path):
    files = {"data.source": tmp_path / "train.jsonl", "eval.source": tmp_path / "held.jsonl"}
    for file in files.values():
        shutil.copy(rows, file)
    changes = [(key, str(file)) for key, file in files.items()]
    config = make(*changes, ("steps", 1), ("eval.holdout", 0), ("eval.rows", 4))
    fit(config, tmp_path / "run", progress=Quiet())
    for file, problem in (("held.jsonl", "held-out rows"), ("train.jsonl", "rows of data.source")):
        lines = (tmp_path / file).read_text().splitlines(keepends=True)
        (tmp_path / file).write_text("".join(lines[:-1]))
        count = rf"{len(lines)} rows, now {len(lines) - 1}; "
        with pytest.raises(DataError, match=rf"the {problem} changed .*\n.*/{file}: {count}"):
            fit(config, tmp_path / "run", progress=Quiet())


@pytest.mark.slow
def test_another_config_is_refused_unless_told(make, whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "run")
    before = contents(tmp_path / "run")
    longer = make(("steps", STEPS + 2), ("optim.lr", 1e-3))
    with pytest.raises(WorkdirError, match=r"(?s)steps: 12 -> 14.*optim.lr: 0.03 -> 0.001.*--acc"):
        fit(longer, tmp_path / "run", progress=Quiet())
    assert contents(tmp_path / "run") == before
    fit(longer, tmp_path / "run", accept_changes=True, progress=Quiet())
    assert [line["step"] for line in lines(tmp_path / "run", "train")][-2:] == [12, 14]
    assert lines(tmp_path / "run", "train")[-1]["lr"] == pytest.approx(1e-3 / 14)
    wider = make(("steps", STEPS + 2), ("optim.lr", 1e-3), ("trainable.rank", 3))
    with pytest.raises(ValueError, match=r"(?s)was saved with another config:.*lora/layers"):
        fit(wider, tmp_path / "run", accept_changes=True, progress=Quiet())


def test_one_run_at_a_time(make, tmp_path):
    with (
        run_directory(tmp_path, configs.resolved(make())),
        pytest.raises(WorkdirError, match="another run is using"),
    ):
        fit(make(), tmp_path, progress=Quiet())


@pytest.mark.slow
def test_a_lost_run_stops_and_names_its_rows(make, tmp_path):
    wild = make(("optim.lr", 1e6), ("eval.every", None))
    with pytest.raises(RunError) as error:
        fit(wild, tmp_path, progress=Quiet())
    message = str(error.value)
    assert "training diverged: loss" in message and "rows.jsonl:" in message
    step = int(re.search(r"step (\d+):", message)[1])
    kept = [int(path.name) for path in (tmp_path / "checkpoints").glob("[0-9]*")]
    assert all(each < step for each in kept)
    assert all(line["step"] < step for line in lines(tmp_path, "train"))


@pytest.mark.slow
def test_patience_ends_a_run_and_the_best_is_exported(make, tmp_path, monkeypatch):
    found = iter([5.0, 4.0, 3.0, 3.5, 3.2, 3.0])  # before training, and after each step
    monkeypatch.setattr(Run, "_evaluate", lambda *_: {"loss": next(found)})
    stubborn = make(("eval.every", 1), ("eval.patience", 3), ("checkpoint.keep", 1))
    summary = fit(stubborn, tmp_path, progress=Quiet())
    assert summary["stopped_early"] and summary["steps"] == 5
    assert (summary["eval_loss_before"], summary["eval_loss"], summary["eval_step"]) == (5, 3, 2)
    kept = Checkpoints(tmp_path / "checkpoints")
    assert kept.steps == [2, 5]
    best, last = (kept.arrays(step)[0]["trainable/lora/layers/attn/q/w/b"][0] for step in (2, 5))
    kept.close()
    exported = (tmp_path / "export/adapter/adapter_model.safetensors").read_bytes()
    assert np.ascontiguousarray(best.T).tobytes() in exported
    assert np.ascontiguousarray(last.T).tobytes() not in exported


@pytest.mark.slow
def test_tuning_all_weights_exports_a_model(make, tmp_path):
    import jaxtune

    full = make(("steps", 2), ("trainable", {"kind": "full"}), ("trainable.kind", "full"))
    fit(full, tmp_path, progress=Quiet())
    _, variables = jaxtune.load(tmp_path / "export/merged")
    assert variables["params"]["embed"]["w"].shape == (512, 32)
    assert (tmp_path / "export/merged/tokenizer.json").is_file()


@pytest.mark.slow
def test_event_files_are_what_tensorboard_reads(make, whole, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = make(("log.tensorboard", True))
    with pytest.raises(RuntimeError):
        fit(config, tmp_path, progress=At(7, crash))
    fit(config, tmp_path, progress=Quiet())
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    for kind in ("train", "eval"):
        wanted = {line["step"]: line["loss"] for line in lines(tmp_path, kind)}
        found = {event.step: event.value for event in events.Scalars(f"{kind}/loss")}
        assert found == {step: np.float32(loss) for step, loss in wanted.items()}
    assert "train/tokens_per_second" in events.Tags()["scalars"]


@pytest.mark.slow
def test_eight_devices_run_as_one_does(base, rows, tmp_path):
    """Ten steps of a run, weights loaded onto the mesh, on one device and on eight."""
    values = dict(
        steps=10,
        model=dict(path=str(base)),
        data=dict(source=str(rows)),
        trainable=dict(rank=4),
        optim=dict(lr=3e-3),
        batch=dict(rows=8, max_length=64, buckets=[64]),
        log=dict(every=1),
        generate=dict(max_new_tokens=4),
    )
    code = """
        import json, sys
        from pathlib import Path
        from jaxtune.config import load as config
        from jaxtune.display.progress import Quiet
        from jaxtune.runs.run import fit
        given = config.parse(json.loads(sys.argv[1]))
        fit(given, Path(sys.argv[2]), plan=False, progress=Quiet())
    """
    fit(configs.parse(values), tmp_path / "one", plan=False, progress=Quiet())
    spread = json.dumps(values | {"mesh": dict(data=2, fsdp=2, tensor=2)})
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), spread, tmp_path / "eight"],
        env=devices.environment(8),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    one, eight = ([line["loss"] for line in lines(tmp_path / n, "train")] for n in ("one", "eight"))
    np.testing.assert_allclose(eight, one, rtol=1e-5)
