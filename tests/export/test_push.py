"""The thread that sends what a run saves to a Hub on this machine."""

import json

import pytest
from huggingface_hub.utils import validate_repo_id

import launch
from jaxtune.checkpoint.hub import PassingError
from jaxtune.config.run_sections import Hub
from jaxtune.display.progress import Quiet
from jaxtune.export import push
from jaxtune.export.push import Pushes, pushing, repository
from jaxtune.workdir.directory import Workdir
from tests.loopback import TOKEN, Trouble
from tests.pushes import ADAPTER, hub_on_this_machine, until, written


@pytest.fixture
def server(tmp_path, monkeypatch):
    with hub_on_this_machine(tmp_path, monkeypatch) as running:
        yield running


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
        f"will push at the end to {server.url}/me/new, a new repository",
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
    assert len(said) == 3 and said[1].endswith("(will retry)") and "500" in said[1]
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
    assert said[-1].endswith("(the run continues)")
    save(pushes, 2)
    until(lambda: server.repositories["me/new"].commits == ["step 2"])


def test_a_save_that_cannot_be_written(begin, server, tmp_path):
    def full(_):
        raise OSError(28, "No space left on device")

    pushes, said = begin(every="save")
    pushes.saved(full, 1, "step 1")
    pushes.tell()
    assert "No space left on device (the run continues)" in said[-1]


@pytest.mark.slow
def test_a_run_that_ends_waits_so_long_and_says_what_to_do(begin, server, tmp_path):
    pushes, said = begin(wait=1)
    server.troubles.append(Trouble("/commit/", 10**6))
    exported = written(tmp_path / "export")
    assert pushes.ended(exported, "step 2") == {"repository": "me/new", "pushed": None}
    assert "not pushed: " in said[-1] and "500" in said[-1]
    command = said[-1].splitlines()[-1].removeprefix("to push it yourself: python launch.py ")
    server.troubles.clear()
    assert launch.main(command.split()) == 0
    assert server.repositories["me/new"].files == ADAPTER


def test_what_cannot_pass_is_not_waited_for(begin, server, tmp_path):
    pushes, said = begin(private=False, wait=600)
    server.troubles.append(Trouble("/commit/", 10**6, status=403))
    assert pushes.ended(written(tmp_path / "export"), "step 2")["pushed"] is None
    assert "the token has no write access" in said[-1] and said[-1].endswith("me/new --public")


def test_a_hub_that_is_away_stops_only_a_new_run(begin, server, tmp_path):
    server.troubles.append(Trouble("/models/", 2, status=503))
    with pytest.raises(PassingError):
        begin()
    (tmp_path / "run/checkpoints").mkdir()
    pushes, said = begin()
    assert "503" in said[0] and said[0].endswith("(will retry)")
    assert pushes.ended(written(tmp_path / "export"), "step 2")["pushed"]
    assert server.repositories["me/new"].private


def test_a_run_that_is_stopped_waits_a_little(begin, server, tmp_path):
    (tmp_path / "run").mkdir()
    config = Hub(repo="me/new", every="save")
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
