"""`launch.py export` on a finished run: what it writes where, and what it refuses."""

import json
import shutil
from pathlib import Path

import jax
import pytest

import jaxtune
import launch
from tests import tiny


@pytest.fixture(scope="module")
def place(base, rows, tmp_path_factory):
    """A directory with a config and a finished run of it."""
    place = tmp_path_factory.mktemp("exported")
    settings = tiny.settings(
        base,
        rows,
        optim={"lr": 0.03},
        eval={"holdout": 11, "every": 2},
        generate={"max_new_tokens": 4},
        checkpoint={"every": 2},
    )
    (place / "x.py").write_text(f"def get_config():\n    return {settings!r}\n")
    assert launch.main(["train", *arguments(place, place / "run")]) == 0
    return place


def arguments(place: Path, workdir: Path) -> list[str]:
    return ["--config", str(place / "x.py"), "--workdir", str(workdir)]


@pytest.fixture
def run(place, tmp_path):
    """A copy of that run."""
    return Path(shutil.copytree(place / "run", tmp_path / "run"))


@pytest.fixture
def exported(place, run, capsys):
    """`exported("--merged", …)` is what is printed."""

    def exported(*options):
        assert launch.main(["export", *arguments(place, run), *map(str, options)]) == 0
        return capsys.readouterr().out

    return exported


def report(directory: Path) -> dict:
    return json.loads((directory / "export.json").read_text())


@pytest.mark.slow
def test_a_run_exports_and_verifies_by_itself(run):
    summary = json.loads((run / "summary.json").read_text())
    assert summary["verified"] is True and summary["exported"].endswith("run/export/adapter")
    found = report(run / "export/adapter")
    assert found["kept"] and found["step"] == summary["eval_step"] == 4
    assert found["same"]["arrays"] == 21 and found["comparison"] is None


@pytest.mark.slow
def test_what_is_there_is_verified_anew(run, exported, failure, place):
    file = run / "export/adapter/adapter_model.safetensors"
    written = file.stat().st_mtime_ns
    printed = exported()
    assert "verified: reloaded from disk and compared on held-out rows: " in printed
    assert file.stat().st_mtime_ns == written
    exported("--overwrite")
    assert file.stat().st_mtime_ns > written
    file.write_bytes(file.read_bytes()[:-4])
    message = failure("export", *arguments(place, run))
    assert "the written files do not match the model in memory" in message
    assert [each.name for each in (run / "export").glob("adapter*")] == ["adapter.failed"]
    assert "verified: reloaded from disk" in exported() and file.is_file()


@pytest.mark.slow
def test_every_kind_and_step_has_a_place(run, exported, place, failure, tmp_path):
    exported("--step", "2")
    assert report(run / "export/adapter-step-2")["step"] == 2
    assert "effect of merging in the dtype of the base: logits" in exported("--merged")
    assert "export unchanged in" in exported("--merged")
    assert report(run / "export/merged")["dtype"] == "auto"
    merged = run / "export/merged"
    assert f"{merged} already exists" in failure(
        "export", *arguments(place, run), "--merged=float16"
    )
    exported("--merged", "float16", "--overwrite")
    exported("--merged", "bfloat16", "--step", "last", "--to", tmp_path / "out")
    assert report(run / "export/merged")["dtype"] == "float16"
    assert report(tmp_path / "out")["merging"]["merged"]["kl"] < 1e-3
    _, variables = jaxtune.load(tmp_path / "out", "auto")
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(variables)} == {"bfloat16"}


@pytest.mark.slow
def test_anyones_adapter_is_merged(run, exported, tmp_path):
    adapter = shutil.copytree(run / "export/adapter", tmp_path / "theirs")
    shutil.rmtree(run / "checkpoints")
    printed = exported("--adapter", adapter, "--merged", "float32", "--to", tmp_path / "out")
    assert "effect of merging in float32: logits" in printed
    found = report(tmp_path / "out")
    assert found["adapter"] == str(adapter) and found["step"] is None
    assert found["merging"]["merged"]["logits"] < 1e-4


@pytest.mark.slow
def test_training_goes_on_from_an_adapter(run, place, tmp_path, failure):
    adapter = f"--config.trainable.adapter={run / 'export/adapter'}"
    command = ["train", *arguments(place, tmp_path / "more"), adapter, "--config.optim.lr=0.003"]
    message = failure(*command, "--config.trainable.rank=3", "--config.trainable.variant=dora")
    assert "trainable.rank is 3, but the adapter's is 2" in message
    assert "trainable.variant is dora, but the adapter's is lora or rslora" in message
    shutil.rmtree(tmp_path / "more")
    assert launch.main(command) == 0
    first, more = (
        json.loads((each / "summary.json").read_text()) for each in (run, tmp_path / "more")
    )
    # Read from a file, an adapter makes another program, which rounds otherwise.
    assert more["eval_loss_before"] == pytest.approx(first["eval_loss"], rel=1e-5)
    assert more["eval_loss"] < more["eval_loss_before"]


@pytest.mark.slow
def test_another_run_or_step_is_refused(run, place, failure):
    command = ["export", *arguments(place, run)]
    message = failure(*command, "--step", "3")
    assert "--step 3: expected best, last, or a checkpoint in" in message and "2, 4" in message
    message = failure(*command, "--config.trainable.alpha=8")
    assert (
        "contains a run of another config" in message and "trainable.alpha: 16.0 -> 8.0" in message
    )


@pytest.mark.parametrize(
    "options, problem",
    [
        ([], "runs/x/checkpoints contains no checkpoint: train first, or pass the run's --work"),
        (
            ["--adapter", "a"],
            "--adapter can only be exported merged: add --merged and --to PATH",
        ),
        (["--adapter", "a", "--merged", "float16", "--to", "b", "--step", "2"], "--step selects a"),
        (["--into", "original"], "--into applies only to merged exports: add --merged"),
        (["--merged", "int8"], "invalid choice: 'int8'"),
        (
            ["--verify=reference", "--merged", "float16", "--to", "a.npz"],
            "cannot read .npz files such as a.npz",
        ),
    ],
)
def test_what_cannot_be_exported(options, problem, config, failure):
    assert problem in failure("export", "--config", config(), *options)
    assert not Path("runs").exists()
