"""Runs in processes of their own that are killed, and the benchmark that kills many."""

import importlib.util
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxtune.config import load as configs
from jaxtune.display.progress import Quiet
from jaxtune.runs.run import fit
from tests.runs.test_run import contents

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_run_that_is_killed_ends_as_one_that_is_not(make, whole, tmp_path):
    """It is killed once a checkpoint is there, and goes on in this process."""
    config, workdir = tmp_path / "config.py", tmp_path / "run"
    config.write_text(f"def get_config():\n    return {configs.resolved(make())!r}\n")
    command = [sys.executable, "launch.py", "--config", config, "--workdir", workdir]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        while not any(workdir.glob("checkpoints/[0-9]*")):
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not (workdir / "summary.json").exists()
    fit(make(), workdir, progress=Quiet())
    assert contents(workdir) == contents(whole[0])


class Pretended:
    """A process that outlasts every moment, and leaves the files of a whole run if not stopped."""

    returncode = 0

    def __init__(self, whole: Path, workdir: Path, sent: list):
        self.whole, self.workdir, self.sent, self.stopped = whole, workdir, sent, False

    def wait(self, moment=None):
        if moment is not None:
            raise subprocess.TimeoutExpired("launch.py", moment)
        if not (self.stopped or self.workdir.exists()):
            shutil.copytree(self.whole, self.workdir)

    def send_signal(self, number):
        self.stopped = True
        self.sent.append(number)

    def communicate(self):
        self.wait()
        return "", None


def benchmark(monkeypatch, whole: Path, *options: str):
    """benchmarks/resume.py with processes that are pretended; it shall run its `main`."""
    spec = importlib.util.spec_from_file_location("resume", ROOT / "benchmarks/resume.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.sent = []

    def launch(config, workdir):
        assert configs.load(config).steps == 8
        return Pretended(whole, workdir, module.sent)

    monkeypatch.setattr(module, "launch", launch)
    monkeypatch.setattr(sys, "argv", ["resume.py", "--steps=8", *options])
    return module


@pytest.mark.slow
@pytest.mark.parametrize("name", ["KILL", "TERM"])
def test_the_benchmark_stops_runs_and_compares_them(name, whole, monkeypatch, capsys):
    module = benchmark(monkeypatch, whole[0], "--runs=2", "--stops=3", f"--signal={name}")
    module.main()
    assert module.sent == [getattr(signal, f"SIG{name}")] * 6
    assert f"2 runs, stopped 6 times by SIG{name} (0 of them while" in capsys.readouterr().out


@pytest.mark.slow
def test_the_benchmark_ends_at_a_run_that_differs(whole, monkeypatch, capsys):
    module = benchmark(monkeypatch, whole[0], "--runs=1", "--stops=1")
    differing = iter([contents(whole[0]), "something else"])
    monkeypatch.setattr(module, "contents", lambda workdir: next(differing))
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert ended.value.code == 1
    assert "stopped 1 times, differs from the uninterrupted run" in capsys.readouterr().out
