"""checkpoint/hub against a server on this machine that speaks the Hub's few endpoints."""

import hashlib
import json
import os
import subprocess
import sys
import threading
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from jaxtune.checkpoint import hub
from jaxtune.checkpoint.formats.safetensors import CheckpointError
from jaxtune.checkpoint.hub import HubError
from jaxtune.checkpoint.sources import locate, locate_tokenizer
from tests.loopback import TOKEN, only_hub

REPO = "maker/model"
COMMIT = "a" * 40
WANTED = {
    "config.json": b"{}",
    "model.safetensors": b"weights",
    "tokenizer.json": b"[]",
    "tokenizer.model": b"pieces",
    "chat_template.jinja": b"{{ messages }}",
}
UNWANTED = {
    "README.md": b"# Model",
    "pytorch_model.bin": b"pickle",
    "consolidated.safetensors": b"the same weights again",
    "model.gguf": b"GGUF",
    "original/x.pth": b"pickle",
    "original/tokenizer.model": b"pieces",
    "checkpoint-500/model.safetensors": b"intermediate weights",
}


class Hub(ThreadingHTTPServer):
    """A Hub with one repository; `refusals` answers a path that contains the key by an error."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {**WANTED, **UNWANTED}
        self.refusals = {}  # part of a path -> (status, headers)
        self.requests = []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def downloads(self):
        """The files whose content was asked for."""
        paths = [path for method, path in self.requests if method == "GET"]
        return [path.split(f"/resolve/{COMMIT}/")[1] for path in paths if "/resolve/" in path]


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        path = self.path.split("?")[0]
        self.server.requests.append((self.command, path))
        for part, (status, headers) in self.server.refusals.items():
            if part in path:
                header = self.headers["authorization"]
                echoed = f"refused {header} or {header.split()[-1]}"
                return self.answer(status, b"{}", {"X-Error-Message": echoed, **headers})
        if path.startswith(f"/api/models/{REPO}/revision/"):
            return self.answer_revision(path.rsplit("/", 1)[1])
        if path == f"/api/models/{REPO}/tree/{COMMIT}":
            return self.answer(200, json.dumps(self.tree()).encode())
        name = path.removeprefix(f"/{REPO}/resolve/{COMMIT}/")
        if name in self.server.files:
            return self.answer_file(self.server.files[name])
        return self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def tree(self):
        return [
            {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            for name, data in self.server.files.items()
        ]

    def answer_revision(self, revision):
        if revision not in ("main", "v2"):
            return self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        return self.answer(200, json.dumps({"id": REPO, "sha": COMMIT, "siblings": []}).encode())

    def answer_file(self, data):
        etag = f'"{hashlib.sha1(data).hexdigest()}"'
        return self.answer(200, data, {"ETag": etag, "X-Repo-Commit": COMMIT})

    def answer(self, status, body, headers=None):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A running Hub, and huggingface_hub with an empty cache that knows no other one."""
    running = Hub()
    threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
    only_hub(
        running.url,
        tmp_path,
        monkeypatch,
        HUGGINGFACE_CO_URL_TEMPLATE=running.url + "/{repo_id}/resolve/{revision}/{filename}",
        HF_HUB_CACHE=str(tmp_path / "cache"),
        HF_HUB_DISABLE_PROGRESS_BARS=True,
    )
    monkeypatch.chdir(tmp_path)
    yield running
    running.shutdown()
    running.server_close()
    huggingface_hub.close_session()  # and the next test none of these


def failure(source=REPO):
    """The one error that locating gives: a clear line, no chain behind it, no token in it."""
    with pytest.raises(HubError) as caught:
        locate(source)
    assert isinstance(caught.value, CheckpointError)
    shown = "".join(traceback.format_exception(caught.value))
    assert shown.count("Traceback") == 1 and TOKEN not in shown
    message = str(caught.value)
    assert message.startswith("maker/model") and "\n" not in message
    return message


def found(directory):
    paths = [path for path in Path(directory).rglob("*") if path.is_file()]
    return {str(path.relative_to(directory)): path.read_bytes() for path in paths}


# Local paths


def test_existing_paths_are_themselves(tmp_path, monkeypatch, server):
    (tmp_path / "maker" / "model").mkdir(parents=True)
    file = tmp_path / "weights.safetensors"
    file.touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert locate(tmp_path) == tmp_path
    assert locate(str(file)) == file
    assert locate("~/maker") == tmp_path / "maker"
    assert locate(REPO) == Path("maker/model")
    assert server.requests == []


@pytest.mark.parametrize(
    "source",
    [
        "",
        "gemma",
        "./maker/model",
        "../maker/model",
        "/maker/model",
        "a/b/c",
        "maker/model/",
        "maker/weights.npz",
        "maker/model.safetensors",
        "maker/mo del",
        "maker/model@",
        "maker/model@../../escape",
        "maker/model@/escape",
        "maker/model@v2/../../escape",
        "maker/mo..del",
        "maker/mo--del",
    ],
)
def test_neither_path_nor_repository(source, server):
    with pytest.raises(CheckpointError, match="no such directory or file, and not a repository id"):
        locate(source)
    assert server.requests == []


def test_nearest_name_is_offered(tmp_path):
    (tmp_path / "gemma-2b-it").mkdir()
    (tmp_path / "notes.txt").touch()
    hint = f"Did you mean {tmp_path / 'gemma-2b-it'}?"
    for missing in ("gema-2b-it", "gema-2b-it/export/model"):
        with pytest.raises(CheckpointError) as caught:
            locate(tmp_path / missing)
        assert str(caught.value).endswith(hint)
    for missing in ("unlike/anything", "notes.txt/model"):
        with pytest.raises(CheckpointError) as caught:
            locate(tmp_path / missing)
        assert "Did you mean" not in str(caught.value)


# Downloads


def test_only_wanted_files_are_fetched(server):
    assert found(locate(REPO)) == WANTED
    assert sorted(server.downloads()) == sorted(WANTED)


def test_a_tokenizer_comes_without_weights(server, tmp_path):
    server.files["model.safetensors.index.json"] = b"{}"
    small = {name: data for name, data in WANTED.items() if name != "model.safetensors"}
    assert found(locate_tokenizer(f"{REPO}@v2")) == small
    assert sorted(server.downloads()) == sorted(small)
    assert locate_tokenizer(tmp_path) == tmp_path
    with pytest.raises(HubError, match="has no revision v3"):
        locate_tokenizer(f"{REPO}@v3")


def test_revision_is_passed_on(server):
    assert found(locate(f"{REPO}@v2")) == WANTED
    assert ("GET", f"/api/models/{REPO}/revision/v2") in server.requests
    assert ("GET", f"/api/models/{REPO}/revision/main") not in server.requests


def test_second_time_downloads_nothing(server):
    first = locate(REPO)
    server.requests.clear()
    assert locate(REPO) == first
    assert server.downloads() == []


def test_repository_without_anything_to_read(server):
    server.files = {"README.md": b"# Model"}
    assert "no config, tokenizer or .safetensors file" in failure(f"{REPO}@v2")


# What can go wrong


@pytest.mark.parametrize(
    ("status", "problem"),
    [(401, "no valid token was sent"), (403, "the account of your token has no access yet")],
)
@pytest.mark.parametrize("place", ["/revision/", "/resolve/"])
def test_gated_repository(server, place, status, problem):
    """Gated repositories list their files to anyone; it is the files that are refused."""
    server.refusals[place] = (status, {"X-Error-Code": "GatedRepo"})
    message = failure()
    assert f"is gated, and {problem}" in message
    assert f"accept its licence at {server.url}/maker/model" in message
    assert "HF_TOKEN" in message


def test_missing_repository(server, tmp_path):
    server.refusals["/revision/"] = (404, {"X-Error-Code": "RepoNotFound"})
    message = failure()
    assert "no such directory, and no repository of that name on" in message
    assert "set HF_TOKEN" in message and "Did you mean" not in message
    (tmp_path / "makers").mkdir()
    assert failure().endswith("Did you mean makers?")


def test_missing_revision(server):
    message = failure(f"{REPO}@v3")
    assert "has no revision v3" in message and f"{server.url}/maker/model/tree/main" in message


def test_no_connection_and_nothing_cached(server, tmp_path):
    server.shutdown()
    server.server_close()
    message = failure(f"{REPO}@v2")
    assert f"it cannot be downloaded from {server.url} (ConnectError" in message
    assert f"it is not in the cache at {tmp_path / 'cache'}" in message
    assert "`hf download maker/model --revision v2`, then copy models--maker--model" in message


def test_no_connection_but_cached(server):
    first = locate(REPO)
    server.shutdown()
    server.server_close()
    assert locate(REPO) == first


def test_offline_and_only_part_cached(server, monkeypatch):
    (locate(REPO) / "config.json").unlink()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set, and only part of it is in the cache" in failure()


@pytest.mark.slow
def test_offline_by_the_environment(tmp_path, server):
    script = (
        "import sys\n"
        "from jaxtune.checkpoint.hub import HubError\n"
        "from jaxtune.checkpoint.sources import locate\n"
        "assert 'huggingface_hub' not in sys.modules, 'imported too early'\n"
        "try:\n"
        "    locate('maker/model')\n"
        "except HubError as error:\n"
        "    print(error)\n"
    )
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_ENDPOINT": server.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_CACHE": str(tmp_path / "offline cache"),
        "PYTHONPATH": str(Path(hub.__file__).parents[2]),
    }
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert "maker/model: HF_HUB_OFFLINE is set, and it is not in the cache" in done.stdout
    assert str(tmp_path / "offline cache") in done.stdout
    assert server.requests == []


@pytest.mark.parametrize(
    ("status", "problem"),
    [
        (401, "the token was rejected"),
        (403, "the token has no read access to this repository"),
        (429, "too many requests"),
        (503, "503"),
    ],
)
def test_other_refusals_say_why_without_the_token(server, status, problem):
    """The server sends the token back in its message, as a careless proxy might."""
    server.refusals["/revision/"] = (status, {})
    message = failure()
    assert problem in message
    assert "refused (token) or (token)" in message


def test_disk_full(server, monkeypatch, tmp_path):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    assert f"the disk with the cache {tmp_path / 'cache'} is full" in failure()
