"""A Hub on this machine that takes what huggingface_hub sends to push, and nothing else."""

import base64
import hashlib
import itertools
import json
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
from huggingface_hub import constants

TOKEN, READER, STRANGER = ("hf_" + name * 5 for name in ("Writes", "Reads", "Others"))
ACCOUNTS = {TOKEN: ("me", "write"), READER: ("me", "read"), STRANGER: ("stranger", "write")}
SIGNATURE = "signature=5ecret"  # of an address that takes bytes from whoever knows it
LARGE = (".safetensors", ".npz")


def only_hub(url, tmp_path, monkeypatch, **settings):
    """Makes huggingface_hub know no Hub but this one, with TOKEN and constants of its own."""
    for name, value in {
        "ENDPOINT": url,
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_TELEMETRY": True,
        "HF_TOKEN_PATH": str(tmp_path / "token"),
        "HF_STORED_TOKENS_PATH": str(tmp_path / "tokens"),
        **settings,
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")  # nothing leaves this machine
    huggingface_hub.close_session()  # a new session reads the proxies


@dataclass
class Repository:
    """One of its repositories: what the newest commit holds, and the messages of all."""

    private: bool
    owner: str
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)


@dataclass
class Trouble:
    """What happens, so many times, to requests whose path holds a part."""

    part: str
    times: int
    status: int = 500
    seconds: float = 0.0  # to hesitate; with no status the connection is then cut


class Loopback(ThreadingHTTPServer):
    """The server: `repositories` by name, `objects` by hash, `requests` as they came."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.troubles: list[Trouble] = []
        self.requests: list[tuple[str, str]] = []
        self.arrived = threading.Condition()
        self.numbers = itertools.count(1)
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def counts(self):
        """How often each kind of request came."""
        kinds = ("whoami", "create", "preupload", "objects/batch", "storage", "verify", "commit")
        return Counter(kind for _, path in self.requests for kind in kinds if kind in path)

    def close(self):
        self.shutdown()
        self.server_close()

    def handle_error(self, *_):
        """A client that went away is what some tests are about."""


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        length = int(self.headers["content-length"] or 0)
        self.body = self.rfile.read(length)
        path, _, self.query = self.path.partition("?")
        with self.server.arrived:
            self.server.requests.append((self.command, path))
            self.server.arrived.notify_all()
        token = (self.headers["authorization"] or "").removeprefix("Bearer ")
        self.account, self.role = ACCOUNTS.get(token, ("", ""))
        if self.in_trouble(path):
            pass
        elif path.startswith("/storage/"):
            self.take_object(path.rsplit("/", 1)[1])
        elif self.account:
            self.route(path)
        else:
            self.answer(401, {"error": f"Invalid credentials: {token}"})

    do_POST = do_PUT = do_GET

    def in_trouble(self, path):
        for trouble in self.server.troubles:
            if trouble.part in path and trouble.times:
                trouble.times -= 1
                time.sleep(trouble.seconds)
                if trouble.status:
                    self.answer(trouble.status, {"error": f"refused {self.headers}"})
                else:
                    self.connection.close()
                return True
        return False

    def route(self, path):
        if path == "/api/whoami-v2":
            access = {"displayName": "x", "role": self.role}
            return self.answer(200, {"name": self.account, "auth": {"accessToken": access}})
        if path == "/api/repos/create":
            return self.create(json.loads(self.body))
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        name = "/".join(path.removeprefix("/api/models/").strip("/").split("/")[:2])
        name = name.removesuffix(".git")
        found = self.server.repositories.get(name)
        if not found or (found.private and found.owner != self.account):
            return self.answer(404, {"error": "no such"}, {"X-Error-Code": "RepoNotFound"})
        if path == f"/api/models/{name}":
            return self.answer(200, {"id": name, "private": found.private, "sha": "0" * 40})
        if found.owner != self.account or self.role != "write":
            return self.answer(403, {"error": "You have read access but not the required one"})
        action = path.split(name, 1)[1].split("/")[1:]
        return getattr(self, "do_" + action[0].replace("-", "_"))(name, found)

    def create(self, wanted):
        owner = wanted.get("organization") or self.account
        name = f"{owner}/{wanted['name']}"
        if owner != self.account or self.role != "write":
            return self.answer(403, {"error": f"no rights to create a model under {owner}"})
        if name in self.server.repositories:
            return self.answer(409, {"error": "You already created this model repo"})
        private = wanted.get("private") or wanted.get("visibility") == "private"
        self.server.repositories[name] = Repository(bool(private), owner)
        return self.answer(200, {"url": f"{self.server.url}/{name}"})

    def do_auth_check(self, *_):
        self.answer(200, {})

    def do_preupload(self, name, found):
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(self.body)["files"]
        ]
        self.answer(200, {"files": modes})

    def do_info(self, name, found):
        """Which objects are wanted, and where they are to go."""
        if self.path.endswith("/verify"):
            known = json.loads(self.body)["oid"] in self.server.objects
            return self.answer(200 if known else 404, {})
        objects = json.loads(self.body)["objects"]
        for each in objects:
            if each["oid"] not in self.server.objects:
                each["actions"] = {
                    "upload": {"href": f"{self.server.url}/storage/{each['oid']}?{SIGNATURE}"},
                    "verify": {"href": f"{self.server.url}/{name}.git/info/lfs/verify"},
                }
        return self.answer(200, {"transfer": "basic", "objects": objects})

    def take_object(self, oid):
        right = self.query == SIGNATURE and hashlib.sha256(self.body).hexdigest() == oid
        if right:
            self.server.objects[oid] = self.body
        self.answer(200 if right else 403, {})

    def do_commit(self, name, found):
        lines = [json.loads(line) for line in self.body.splitlines()]
        assert lines[0]["key"] == "header"
        new = {}
        for line in lines[1:]:
            value = line["value"]
            new[value["path"]] = (
                self.server.objects[value["oid"]]
                if line["key"] == "lfsFile"
                else base64.b64decode(value["content"])
            )
        found.files.update(new)
        found.commits.append(lines[0]["value"]["summary"])
        oid = f"{next(self.server.numbers):040x}"
        url = f"{self.server.url}/{name}/commit/{oid}"
        self.answer(200, {"success": True, "commitUrl": url, "commitOid": oid})

    def answer(self, status, content, headers=None):
        body = json.dumps(content).encode()
        echo = f"{content.get('error', '')} {self.headers['authorization']}"
        headers = {"X-Error-Message": " ".join(echo.split())} | (headers or {})
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass
