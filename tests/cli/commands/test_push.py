"""The push command sends a directory or a file to a Hub on this machine."""

import pytest

import launch
from tests.loopback import TOKEN, Trouble
from tests.pushes import ADAPTER, child, hub_on_this_machine, until, written


@pytest.fixture
def server(tmp_path, monkeypatch):
    with hub_on_this_machine(tmp_path, monkeypatch) as running:
        yield running


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
