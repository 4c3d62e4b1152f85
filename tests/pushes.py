"""A Hub on this machine for the tests that push, and what they send to it."""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
from huggingface_hub.utils import _http

from tests.loopback import Loopback, only_hub

ROOT = Path(__file__).parents[1]
ADAPTER = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"weights" * 99}


@contextlib.contextmanager
def hub_on_this_machine(tmp_path, monkeypatch):
    """A running Hub, huggingface_hub that knows no other one, and a token that may write."""
    running = Loopback()
    hasty = SimpleNamespace(**{**vars(time), "sleep": lambda _: None})
    monkeypatch.setattr(_http, "time", hasty)  # its own pauses before it tries again
    only_hub(running.url, tmp_path, monkeypatch, HF_HUB_DISABLE_XET=True)
    try:
        yield running
    finally:
        running.close()
        huggingface_hub.close_session()


def written(directory, files=ADAPTER):
    for name, content in files.items():
        file = directory / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return directory


def until(what):
    limit = time.monotonic() + 20
    while not what():
        assert time.monotonic() < limit
        time.sleep(0.005)


def child(server, *arguments, **environment):
    """launch.py in a process of its own, which knows no Hub but that of this machine."""
    known = {
        "HF_ENDPOINT": server.url,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(Path.cwd() / "home"),
    }
    return subprocess.Popen(
        [sys.executable, str(ROOT / "launch.py"), *arguments],
        env=os.environ | known | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
