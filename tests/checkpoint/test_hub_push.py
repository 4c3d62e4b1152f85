"""The calls of checkpoint/hub that push, against a Hub on this machine."""

import re

import pytest
from huggingface_hub import constants

from jaxtune.checkpoint import hub
from jaxtune.checkpoint.hub import HubError, PassingError
from tests import loopback
from tests.loopback import READER, SIGNATURE, STRANGER, Repository, Trouble
from tests.pushes import ADAPTER, hub_on_this_machine, written


@pytest.fixture
def server(tmp_path, monkeypatch):
    with hub_on_this_machine(tmp_path, monkeypatch) as running:
        yield running


def refusal(*arguments, kind=HubError, call=hub.claim):
    """The one error of a call: a line without the token, and with no other error behind it."""
    with pytest.raises(HubError) as caught:
        call(*arguments)
    assert type(caught.value) is kind and caught.value.__cause__ is None
    message = str(caught.value)
    assert not any(token in message for token in loopback.ACCOUNTS) and SIGNATURE not in message
    return message


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
        (
            "",
            r"no Hub token found, and pushing needs one. Create a token with .* at http.*HF_TOK",
        ),
        ("hf_WrongWrong", r"account of the Hub token: the token was rejected: set HF_TOKEN to a"),
        (
            READER,
            r"the token of me is read-only. Create a token with write.* at http.*/settings/to",
        ),
        ("hf_tok en", r"the Hub token contains spaces or other invalid characters"),
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
    assert "already exists and is public" in refusal("me/public", True)
    assert hub.claim("me/public", False) is False
    for name in ("stranger/public", "stranger/private", "stranger/new"):
        message = refusal(name, False)
        assert message.startswith(f"cannot push to {name}: the token has no write access")
    assert "HFValidationError" in refusal("me/a--b", True)


@pytest.mark.parametrize(
    "status, kind", [(503, PassingError), (429, PassingError), (402, HubError)]
)
def test_what_may_pass(status, kind, server):
    server.troubles.append(Trouble("repos/create", 1, status))
    assert str(status) in refusal("me/new", True, kind=kind)


def test_a_hub_that_is_away(server, monkeypatch):
    server.troubles.append(Trouble("whoami", 1, status=0))
    assert "account of the Hub token: RemoteProtocolError" in refusal(
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
