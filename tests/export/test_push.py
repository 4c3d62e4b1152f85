"""What a run tuned, sent to a Hub on this machine."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.utils import _http, validate_repo_id

import launch
from jaxtune.assembly.assemble import Assembly
from jaxtune.checkpoint import hub
from jaxtune.checkpoint.hub import HubError, PassingError
from jaxtune.config.run_sections import Hub
from jaxtune.display.progress import Quiet
from jaxtune.export import push
from jaxtune.export.push import Pushes, pushing, repository
from jaxtune.workdir.directory import Workdir
from tests import loopback
from tests.loopback import READER, SIGNATURE, STRANGER, TOKEN, Loopback, Repository, Trouble

ROOT = Path(__file__).parents[2]
ADAPTER = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"weights" * 99}


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A running Hub, huggingface_hub that knows no other one, and a token that may write."""
    running = Loopback()
    for name, value in {
        "ENDPOINT": running.url,
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_TELEMETRY": True,
        "HF_TOKEN_PATH": str(tmp_path / "token"),
        "HF_STORED_TOKENS_PATH": str(tmp_path / "tokens"),
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")  # nothing leaves this machine
    hasty = SimpleNamespace(**{**vars(time), "sleep": lambda _: None})
    monkeypatch.setattr(_http, "time", hasty)  # its own pauses before it tries again
    huggingface_hub.close_session()
    yield running
    running.close()
    huggingface_hub.close_session()


def written(directory, files=ADAPTER):
    for name, content in files.items():
        file = directory / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return directory


def refusal(*arguments, kind=HubError, call=hub.claim):
    """The one error of a call: a line without the token, and with no other error behind it."""
    with pytest.raises(HubError) as caught:
        call(*arguments)
    assert type(caught.value) is kind and caught.value.__cause__ is None
    message = str(caught.value)
    assert not any(token in message for token in loopback.ACCOUNTS) and SIGNATURE not in message
    return message


# The calls


def test_a_directory_arrives_byte_for_byte(server, tmp_path):
    more = {".secret": b"x", ".cache/y": b"x", "README.md": b"# Card", "sub/empty": b""}
    source = written(tmp_path / "adapter", {**ADAPTER, **more})
    assert hub.claim("me/new", True) is True
    url = hub.upload(source, "me/new", "step 1")
    found = server.repositories["me/new"]
    assert found.private and found.commits == ["step 1"]
    assert found.files == {**ADAPTER, "README.md": b"# Card", "sub/empty": b""}
    assert url == f"{server.url}/me/new/commit/{1:040x}"
    assert hub.claim("me/new", True) is False


def test_a_single_file_arrives_with_its_card(server, tmp_path):
    written(tmp_path, {"merged.npz": b"arrays", "merged.md": b"# Card", "other.npz": b"x"})
    hub.claim("me/new", False)
    hub.upload(tmp_path / "merged.npz", "me/new", "step 1")
    expected = {"merged.npz": b"arrays", "README.md": b"# Card"}
    assert server.repositories["me/new"].files == expected
    assert not server.repositories["me/new"].private


def test_what_the_hub_holds_is_not_sent_again(server, tmp_path):
    source = written(tmp_path / "adapter")
    hub.claim("me/new", True)
    server.troubles.append(Trouble("/commit/", 1))
    assert "500" in refusal(source, "me/new", "step 1", kind=PassingError, call=hub.upload)
    hub.upload(source, "me/new", "step 1")
    assert server.counts()["storage"] == server.counts()["verify"] == 1
    assert server.repositories["me/new"].files == ADAPTER


@pytest.mark.parametrize(
    "token, problem",
    [
        ("", r"no token was found, and pushing needs one. Make one that may write at http.*HF_TOK"),
        ("hf_WrongWrong", r"whose token this is: the token was refused: set HF_TOKEN anew"),
        (READER, r"the token of me may only read. Make one that may write at http.*/settings/to"),
        ("hf_tok en", r"the token has characters that no token has"),
    ],
)
def test_tokens_that_cannot_push(token, problem, server, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", token)
    message = refusal(call=hub.account)
    assert re.search(problem, message) and (not token or token not in message)


def test_a_stored_token_will_do(server, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    (tmp_path / "token").write_text(STRANGER + "\n")
    assert hub.account() == "stranger"


def test_repositories_that_cannot_be_pushed_to(server):
    server.repositories |= {
        "me/public": Repository(private=False, owner="me"),
        "stranger/public": Repository(private=False, owner="stranger"),
        "stranger/private": Repository(private=True, owner="stranger"),
    }
    assert "is there already and public" in refusal("me/public", True)
    assert hub.claim("me/public", False) is False
    for name in ("stranger/public", "stranger/private", "stranger/new"):
        message = refusal(name, False)
        assert message.startswith(f"{name} cannot be pushed to: the token may not write there")
    assert "HFValidationError" in refusal("me/a--b", True)


@pytest.mark.parametrize(
    "status, kind", [(503, PassingError), (429, PassingError), (402, HubError)]
)
def test_what_may_pass(status, kind, server):
    server.troubles.append(Trouble("repos/create", 1, status))
    assert str(status) in refusal("me/new", True, kind=kind)


def test_a_hub_that_is_away(server, monkeypatch):
    server.troubles.append(Trouble("whoami", 1, status=0))
    assert "whose token this is: RemoteProtocolError" in refusal(
        call=hub.account, kind=PassingError
    )
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "ConnectError" in refusal(call=hub.account, kind=PassingError)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in refusal(call=hub.account)


def test_a_hub_that_says_nothing_is_given_up(server, monkeypatch):
    monkeypatch.setattr(hub, "SILENCE", 0.1)
    server.troubles.append(Trouble("whoami", 1, seconds=1))
    assert "ReadTimeout" in refusal(call=hub.account, kind=PassingError)


def test_a_signed_address_is_not_told(server, tmp_path):
    hub.claim("me/new", True)
    server.troubles.append(Trouble("storage", 9, status=403))
    source = written(tmp_path / "adapter")
    message = refusal(source, "me/new", "x", call=hub.upload, kind=PassingError)
    assert "403" in message and "/storage/" in message


# The thread


class Said(Quiet):
    def __init__(self):
        super().__init__()
        self.lines = []

    def say(self, text=""):
        self.lines.append(text)


@pytest.fixture
def begin(server, tmp_path, monkeypatch):
    """`begin(every="save")` is what sends, begun, and what it says."""
    monkeypatch.setattr(push, "SHORTEST", 0.01)
    begun = []

    def begin(workdir=tmp_path / "run", **values):
        workdir.mkdir(exist_ok=True)
        config = Hub(**{"repo": "new", "wait": 20, **values})
        pushes = Pushes(config, Workdir(workdir, "", "run-1", ()), Said(), True)
        pushes.begin()
        begun.append(pushes)
        return pushes, pushes._progress.lines

    yield begin
    for pushes in begun:
        pushes.stop()


def save(pushes, step, content=None):
    """A save of a run at a step."""
    files = {**ADAPTER, "adapter_model.safetensors": content or b"step %d" % step}
    pushes.saved(lambda directory: written(directory / "adapter", files), step, f"step {step}")


def until(what):
    limit = time.monotonic() + 20
    while not what():
        assert time.monotonic() < limit
        time.sleep(0.005)


def log(tmp_path):
    file = tmp_path / "run/pushes.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def test_only_the_newest_counts(begin, server, tmp_path):
    pushes, _ = begin(every="save")
    server.troubles.append(Trouble("preupload", 1, status=503, seconds=0.3))
    save(pushes, 1)
    until(lambda: server.counts()["preupload"] == 1)
    for step in (2, 3, 4):
        save(pushes, step)
    found = server.repositories["me/new"]
    until(lambda: "step 4" in found.commits)
    assert found.files["adapter_model.safetensors"] == b"step 4"
    assert not {"step 2", "step 3"} & set(found.commits)
    until(lambda: not list((tmp_path / "run/.push").iterdir()))


def test_at_the_end_alone(begin, server, tmp_path):
    pushes, said = begin()
    pushes.saved(lambda _: pytest.fail("exported"), 1, "step 1")
    exported = written(tmp_path / "export")
    found = pushes.ended(exported, "step 2, loss 1.5")
    url = f"{server.url}/me/new/commit/{1:040x}"
    assert found == {"repository": "me/new", "pushed": url}
    assert server.repositories["me/new"].commits == ["step 2, loss 1.5"]
    assert said == [
        f"pushed at the end to {server.url}/me/new, a new repository",
        f"pushed step 2, loss 1.5: {url}",
    ]
    assert exported.is_dir()


def test_failures_are_told_once_and_tried_again(begin, server, tmp_path):
    pushes, said = begin(every="save")
    server.troubles.append(Trouble("/commit/", 3))
    save(pushes, 1)
    until(lambda: server.repositories["me/new"].commits == ["step 1"])
    until(lambda: len(log(tmp_path)) == 4)
    pushes.tell()
    assert len(said) == 3 and said[1].endswith("(will be tried again)") and "500" in said[1]
    assert [list(line)[1] for line in log(tmp_path)] == ["failed"] * 3 + ["pushed"]
    assert TOKEN not in (tmp_path / "run/pushes.jsonl").read_text()


def test_another_process_writes_with_the_first_and_sends_nothing(server, tmp_path):
    config = Hub(repo="me/new", every="save")
    pushes = Pushes(config, Workdir(tmp_path, "", "x", ()), Quiet(), first=False)
    save(pushes, 1)
    assert (tmp_path / ".push/1/adapter/adapter_config.json").is_file()
    assert pushes.ended(tmp_path / "export", "step 2") == {} and not server.requests


def test_pauses_grow(begin, server, monkeypatch):
    pushes, _ = begin()
    waited = []
    monkeypatch.setattr(pushes._changed, "wait_for", lambda _, seconds: waited.append(seconds))
    monkeypatch.setattr(push, "SHORTEST", 5.0)
    for failures in (1, 2, 3, 8, 9000):
        pushes._rest(failures)
    assert waited == [5, 10, 20, 600, 600]
    pushes._ending = True
    pushes._rest(9)
    assert waited[-1] == 10


def test_what_cannot_pass_waits_for_the_next_save(begin, server, tmp_path):
    pushes, said = begin(every="save")
    server.troubles.append(Trouble("/commit/", 1, status=400))
    save(pushes, 1)
    until(lambda: len(log(tmp_path)) == 1)
    pushes.tell()
    assert said[-1].endswith("(the run goes on)")
    save(pushes, 2)
    until(lambda: server.repositories["me/new"].commits == ["step 2"])


def test_a_save_that_cannot_be_written(begin, server, tmp_path):
    def full(_):
        raise OSError(28, "No space left on device")

    pushes, said = begin(every="save")
    pushes.saved(full, 1, "step 1")
    pushes.tell()
    assert "No space left on device (the run goes on)" in said[-1]


def test_a_run_that_ends_waits_so_long_and_says_what_to_do(begin, server, tmp_path):
    pushes, said = begin(wait=1)
    server.troubles.append(Trouble("/commit/", 10**6))
    exported = written(tmp_path / "export")
    assert pushes.ended(exported, "step 2") == {"repository": "me/new", "pushed": None}
    assert "not pushed: " in said[-1] and "500" in said[-1]
    command = said[-1].splitlines()[-1].removeprefix("to push it by hand: python launch.py ")
    server.troubles.clear()
    assert launch.main(command.split()) == 0
    assert server.repositories["me/new"].files == ADAPTER


def test_what_cannot_pass_is_not_waited_for(begin, server, tmp_path):
    pushes, said = begin(private=False, wait=600)
    server.troubles.append(Trouble("/commit/", 10**6, status=403))
    assert pushes.ended(written(tmp_path / "export"), "step 2")["pushed"] is None
    assert "the token may not write there" in said[-1] and said[-1].endswith("me/new --public")


def test_a_hub_that_is_away_stops_only_a_new_run(begin, server, tmp_path):
    server.troubles.append(Trouble("/models/", 2, status=503))
    with pytest.raises(PassingError):
        begin()
    (tmp_path / "run/checkpoints").mkdir()
    pushes, said = begin()
    assert "503" in said[0] and said[0].endswith("(will be tried again)")
    assert pushes.ended(written(tmp_path / "export"), "step 2")["pushed"]
    assert server.repositories["me/new"].private


def test_a_run_that_is_stopped_waits_a_little(begin, server, tmp_path):
    (tmp_path / "run").mkdir()
    config = type("Config", (), {"hub": Hub(repo="me/new", every="save")})
    server.troubles.append(Trouble("/commit/", 1, status=503, seconds=0.2))
    with (
        pytest.raises(RuntimeError),
        pushing(config, Workdir(tmp_path / "run", "", "x", ()), Said(), True) as pushes,
    ):
        save(pushes, 1)
        raise RuntimeError
    assert server.repositories["me/new"].commits == ["step 1"]


@pytest.mark.parametrize(
    "name, expected",
    [
        ("price-2026-11-21_20.50.40-a1b2", "me/price-price-2026-11-21_20.50.40-a1b2"),
        ("a run--of..mine 1/2é-x", "me/price-a-run-of.mine-1-2-x"),
        ("x" * 90 + "-2026-11-21_20.50.40-a1b2", f"me/price-{'x' * 35}-2026-11-21_20.50.40-a1b2"),
    ],
)
def test_names(name, expected):
    assert repository("me/price-{name}", name) == expected
    validate_repo_id(expected)


# The command


def test_the_command_pushes(server, tmp_path, capsys):
    source = str(written(tmp_path / "adapter"))
    assert launch.main(["push", source, "mine"]) == 0
    assert capsys.readouterr().out == f"pushed to {server.url}/me/mine/commit/{1:040x}\n"
    assert server.repositories["me/mine"].private
    assert launch.main(["push", source, "me/open", "--public", "--message", "mine"]) == 0
    assert not server.repositories["me/open"].private
    assert server.repositories["me/open"].commits == ["mine"]


@pytest.mark.parametrize("source", ["nowhere", "folder", "file.txt"])
def test_the_command_refuses_what_is_no_model(source, server, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written(tmp_path, {"folder/passwords": b"x", "file.txt": b"x"})
    assert launch.main(["push", source, "me/new"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {source}")
    assert not server.requests


# A run


@pytest.fixture
def config(base, rows, tmp_path, monkeypatch):
    """`config(every="save")` writes x.py, a config that pushes, with changes to what it says."""
    monkeypatch.chdir(tmp_path)

    def write(repo="me/price-{name}", trainable=(("rank", 2),), **hub):
        values = {
            "steps": 4,
            "model": {"path": str(base)},
            "data": {"source": str(rows), "workers": 0},
            "trainable": dict(trainable),
            "batch": {"rows": 4, "max_length": 64, "packing": True},
            "checkpoint": {"every": 2},
            "eval": {"holdout": 8, "every": 4},
            "hub": {"repo": repo, "wait": 20, **hub},
        }
        (tmp_path / "x.py").write_text(f"def get_config():\n    return {values!r}\n")
        return "x.py"

    return write


def contents(directory):
    return {file.name: file.read_bytes() for file in directory.iterdir()}


def name_of(workdir=Path("runs/x")):
    return "me/price-" + json.loads((workdir / "run.json").read_text())["name"]


def nothing_secret(printed, workdir=Path("runs")):
    """The token is in no file of a run and in nothing that it said."""
    assert TOKEN not in printed
    files = [file for file in workdir.rglob("*") if file.is_file()]
    assert files and not any(TOKEN.encode() in file.read_bytes() for file in files)


@pytest.mark.slow
def test_a_run_pushes_its_adapter(config, server, capsys):
    assert launch.main(["--config", config()]) == 0
    name = name_of()
    assert re.fullmatch(r"me/price-x-\d{4}-\d\d-\d\d_\d\d\.\d\d\.\d\d-[0-9a-f]{4}", name)
    found = server.repositories[name]
    assert found.private and found.files == contents(Path("runs/x/export/adapter"))
    assert re.fullmatch(r"step 4, held-out loss \d\.\d{4}", *found.commits)
    summary = json.loads(Path("runs/x/summary.json").read_text())
    assert summary["repository"] == name
    assert summary["pushed"] == f"{server.url}/{name}/commit/{1:040x}"
    printed = capsys.readouterr().out
    assert summary["pushed"] in printed
    nothing_secret(printed)
    assert launch.main(["--config", config()]) == 0  # which is finished: to the same repository
    assert list(server.repositories) == [name] and found.files == contents(
        Path("runs/x/export/adapter")
    )


@pytest.mark.slow
def test_a_run_pushes_at_every_save_and_goes_on_where_it_was_pushed(config, server, capsys):
    """Its metrics are those of a run that pushes nothing."""
    options = ["--config", config(every="save"), "--config.checkpoint.every=1"]
    server.troubles.append(Trouble("/commit/", 1))
    assert launch.main([*options, "--workdir=runs/x", "--config.steps=3"]) == 0
    found = server.repositories[name_of()]
    assert found.commits[-1].startswith("step 3, held-out loss ")
    assert all(re.match(r"step [123], ", each) for each in found.commits)
    assert launch.main([*options, "--workdir=runs/x", "--accept-changes", "--config.steps=5"]) == 0
    assert found.commits[-1].startswith("step 5, ") and len(server.repositories) == 1
    assert found.files == contents(Path("runs/x/export/adapter"))
    assert not any(Path("runs/x/.push").iterdir())
    nothing_secret(capsys.readouterr().out)
    silent = ["--config", config(repo=""), "--config.checkpoint.every=1", "--workdir=runs/y"]
    assert launch.main([*silent, "--config.steps=3"]) == 0
    assert launch.main([*silent, "--accept-changes", "--config.steps=5"]) == 0
    assert Path("runs/x/metrics.jsonl").read_bytes() == Path("runs/y/metrics.jsonl").read_bytes()


@pytest.mark.slow
def test_a_hub_that_fails_never_stops_a_run(config, server, capsys):
    server.troubles.append(Trouble("/commit/", 10**6))
    assert launch.main(["--config", config(every="save", wait=1)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("(will be tried again)") == 1 and "to push it by hand: " in printed
    assert json.loads(Path("runs/x/summary.json").read_text())["pushed"] is None
    nothing_secret(printed)


@pytest.mark.slow
def test_whole_weights_are_pushed_at_the_end(config, server):
    whole = config(trainable={"kind": "full"}, every="save")
    assert launch.main(["--config", whole, "--config.checkpoint.best=False"]) == 0
    assert server.repositories[name_of()].files == contents(Path("runs/x/export/merged"))


@pytest.mark.parametrize("token", ["hf_WrongWrong", READER, ""])
def test_a_token_that_cannot_push_stops_a_run_before_it_begins(
    token, config, server, monkeypatch, capsys
):
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr(Assembly, "base", lambda *_: pytest.fail("weights were read"))
    assert launch.main(["--config", config()]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: hub.repo is 'me/price-{name}': ") and "HF_TOKEN" in error
    assert not token or token not in error
    assert not Path("runs").exists() and not server.repositories


def test_a_repository_that_is_not_ours_stops_a_run_before_it_begins(
    config, server, monkeypatch, capsys
):
    monkeypatch.setattr(Assembly, "base", lambda *_: pytest.fail("weights were read"))
    assert launch.main(["--config", config(repo="stranger/price-{name}")]) == 2
    assert "the token may not write there" in capsys.readouterr().err
    assert not Path("runs/x/metrics.jsonl").exists()


def test_a_hub_that_is_not_reached_stops_a_run_before_it_begins(
    config, server, monkeypatch, capsys
):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert launch.main(["--config", config()]) == 2
    error = capsys.readouterr().err
    assert "ConnectError" in error and "To train without: --config.hub.repo=" in error
    assert not Path("runs").exists()


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


@pytest.mark.slow
def test_a_push_that_is_killed_goes_on(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    more = {"model-2.safetensors": b"second" * 9}
    source = written(tmp_path / "adapter", ADAPTER | more)
    server.troubles.append(Trouble("/commit/", 1, status=0, seconds=5))
    first = child(server, "push", str(source), "me/new")
    until(lambda: server.counts()["commit"])
    first.kill()
    first.communicate()
    assert not server.repositories["me/new"].files and server.counts()["storage"] == 2
    second = child(server, "push", str(source), "me/new")
    printed = "".join(second.communicate())
    assert second.returncode == 0 and TOKEN not in printed
    assert server.repositories["me/new"].files == ADAPTER | more
    assert server.counts()["storage"] == 2


@pytest.mark.slow
def test_a_run_in_a_process_of_its_own(config, server):
    """Nothing but the environment says where the Hub is and whose the token."""
    running = child(server, "--config", config(repo="price-{name}", every="save"))
    printed = "".join(running.communicate())
    assert running.returncode == 0, printed
    assert server.repositories[name_of()].files == contents(Path("runs/x/export/adapter"))
    nothing_secret(printed)


@pytest.mark.slow
def test_a_hub_that_hangs_keeps_no_run_from_ending(config, server):
    server.troubles.append(Trouble("preupload", 10**6, seconds=30))
    begun = time.monotonic()
    running = child(server, "--config", config(wait=1))
    printed = "".join(running.communicate())
    assert running.returncode == 0 and "not pushed: the Hub took longer than hub.wait" in printed
    assert time.monotonic() - begun < 60
