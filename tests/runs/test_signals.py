"""What signals do to a program of the command line, and to one that only uses the library."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from jaxtune.runs.signals import Stopped, stopping

ROOT = Path(__file__).parents[2]
BEGIN = """
    import hashlib, sys, threading, time
    from jaxtune.runs import signals
    signals.end_program()
    def ready():
        print("ready", flush=True)
"""
NATIVE = "hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)  # many minutes in which no Python runs"


def started(code: str) -> subprocess.Popen:
    """Runs code in a process of its own, to the point at which it says that it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(BEGIN) + textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    return process


def ended(process: subprocess.Popen) -> tuple[int, list[str]]:
    said = process.communicate(timeout=20)[1]
    return process.returncode, said.splitlines()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_program_ends_at_once_even_in_native_code(number):
    process = started(f"""
        with signals.stopping("run it again"):
            ready()
            {NATIVE}
    """)
    process.send_signal(number)
    assert ended(process) == (128 + number, [f"stopped by {number.name}: run it again"])


def test_an_exception_cannot_get_lost():
    """Where a handler raises, a garbage collection that calls back into Python swallows it."""
    process = started("""
        import gc
        gc.callbacks.append(lambda *_: time.sleep(0.01))
        ready()
        while True:
            gc.collect()
    """)
    process.send_signal(signal.SIGINT)
    assert ended(process) == (130, ["stopped by SIGINT"])


WORKING = """
    with signals.stopping("at once") as stop:
        stop.after("the step is saved", "resume")
        ready()
        while not stop.asked:
            time.sleep(0.01)
        {then}
        stop.at_once("export again")
"""


def test_work_is_finished_first():
    process = started(f"""
        try:
            {textwrap.indent(textwrap.dedent(WORKING.format(then="pass")), " " * 12).strip()}
        except signals.Stopped as stopped:
            print(stopped, file=sys.stderr)
            signals.end(128 + stopped.number)
    """)
    process.send_signal(signal.SIGTERM)
    code, said = ended(process)
    assert code == 143
    assert said == [
        "SIGTERM: the step is saved first; a second signal ends the program at once",
        "stopped by SIGTERM: export again",
    ]


def test_a_second_signal_ends_the_program_at_once():
    process = started(textwrap.dedent(WORKING.format(then=NATIVE)))
    process.send_signal(signal.SIGTERM)
    assert "the step is saved first" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    assert ended(process) == (130, ["stopped by SIGINT: resume"])


def test_a_reader_that_stopped_reading_holds_nothing_up():
    process = started("""
        ready()
        threading.Thread(target=lambda: print("x" * 10**6, flush=True)).start()
        time.sleep(60)
    """)
    time.sleep(0.2)
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == 130 and time.monotonic() - begun < 5
    process.communicate()


def test_after_all_work_the_system_ends_the_program():
    process = started("""
        signals.release()
        ready()
        time.sleep(60)
    """)
    process.send_signal(signal.SIGTERM)
    assert ended(process) == (-signal.SIGTERM, [])


def test_in_a_notebook_ctrl_c_interrupts(capfd):
    before = signal.default_int_handler
    outside = signal.signal(signal.SIGINT, before)  # a shell's background jobs ignore the signal
    try:
        with pytest.raises(KeyboardInterrupt), stopping("run it again"):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        assert signal.getsignal(signal.SIGINT) is before
    finally:
        signal.signal(signal.SIGINT, outside)
    assert capfd.readouterr().err == "stopped by SIGINT: run it again\n"


def test_in_a_notebook_work_is_finished_first(capfd):
    with pytest.raises(Stopped, match="stopped by SIGTERM: export again"), stopping("") as stop:
        stop.after("the step is saved", "resume")
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked == signal.SIGTERM
        stop.at_once("export again")
    assert "SIGTERM: the step is saved first" in capfd.readouterr().err


def test_a_signal_within_the_first_imports(tmp_path):
    """Python would print where in an import it was interrupted; found by `make hostile`."""
    code = """
        import os, runpy, signal, sys
        class Interrupted:
            def find_spec(self, name, *_):
                if name == "jaxtune.cli.main":
                    os.kill(os.getpid(), signal.SIGINT)
        sys.meta_path.insert(0, Interrupted())
        runpy.run_path("launch.py", run_name="__main__")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


@pytest.mark.slow
@pytest.mark.parametrize("number, delay", [(signal.SIGINT, 0.4), (signal.SIGTERM, 2.0)])
def test_a_signal_while_a_run_starts(number, delay, tmp_path):
    """While modules are imported, and while programs are compiled."""
    command = ["launch.py", "--config", "configs/palette_demo.py", "--workdir", str(tmp_path)]
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(delay)
    process.send_signal(number)
    code, said = ended(process)
    assert code == 128 + number and said[-1].startswith(f"stopped by {number.name}")
