"""Where a checkpoint lies: a path as it is, or a repository of the Hugging Face Hub, downloaded.

And the way back: what was tuned, sent to a repository there.
"""

import contextlib
import difflib
import errno
import os
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jaxtune.checkpoint.formats.safetensors import DTYPES, CheckpointError, Safetensors, TensorInfo

# Strict, because repository and revision become directory names in the cache.
REPO_ID = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>\w[\w./+-]*))?", re.ASCII)
NO_REPO_SUFFIXES = (".safetensors", ".npz", ".json", ".bin", ".pt", ".pth", ".gguf", ".git")

# What goes with the weights wherever they go.
COMPANIONS = [
    "generation_config.json",
    "tokenizer*",
    "*.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template*",
    "preprocessor_config.json",
    "processor_config.json",
]
WANTED = [
    "config.json",
    "adapter_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    *COMPANIONS,
]
# A star here matches slashes too. Folders hold other layouts and intermediate checkpoints.
UNWANTED = ["*/*", "consolidated*", "*.pth", "*.bin", "*.gguf"]

SILENCE = 120  # seconds without a byte, after which an upload is given up
# Refusals that another attempt may not meet: out of time, in each other's way, too many at once.
PASSING = (408, 409, 412, 423, 425, 429)


class HubError(CheckpointError):
    """A repository of the Hub that cannot be had."""


class PassingError(HubError):
    """What may be well in a minute: the network, or the Hub."""


def locate(source: str | os.PathLike[str]) -> Path:
    """The local directory or file of a checkpoint: a path, `owner/name` or `owner/name@revision`.

    A repository is downloaded into the cache of huggingface_hub, unless it is there already.
    """
    return _existing(source) or _download(*_repository(source))


def locate_headers(source: str | os.PathLike[str]) -> tuple[Path, Callable[[Path], Safetensors]]:
    """The directory of a checkpoint, and what opens the headers of its weights from there.

    A repository's weights stay on the Hub, unless the cache has them: only the small files beside
    them are downloaded.
    """
    if path := _existing(source):
        return path, Safetensors.open
    repo, revision = _repository(source)
    directory = _download(repo, revision, without=["*.safetensors"])
    return directory, partial(_headers, repo, revision)


def locate_tokenizer(source: str | os.PathLike[str]) -> Path:
    """The directory or file of a tokenizer; a repository's weights and their index stay there."""
    return _existing(source) or _download(*_repository(source), without=["*.safetensors*"])


def account() -> str:
    """The account that the token in use belongs to; a token that cannot write is refused."""
    api = _api()
    with _explained("the Hub does not say whose token this is"):
        found = api.whoami()
    if found.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise HubError(f"the token of {found['name']} may only read. {_how_to_write()}")
    return found["name"]


def claim(repo: str, private: bool) -> bool:
    """See to it that a repository is there and the token may write to it; whether it is new.

    One that is to be private is made so, and where it is there already it must be.
    """
    from huggingface_hub import errors

    api = _api()
    with _explained(f"{repo} cannot be pushed to"):
        try:
            found = api.model_info(repo)
        except errors.RepositoryNotFoundError:
            api.create_repo(repo, private=private)
            return True
        api.auth_check(repo, write=True)
    if private and not found.private:
        raise HubError(
            f"{repo} is there already and public, and what is pushed is to be private: make it"
            f" private at {api.endpoint}/{repo}/settings, choose another name, or say that it may"
            " be public (--public; for a run, hub.private=False)"
        )
    return False


def upload(source: Path, repo: str, message: str, *, quiet: bool = False) -> str:
    """Send a file and its card, or a directory's files but hidden ones, as one commit; its page.

    What the repository holds already, by its hash, is not sent again. `quiet` tells nothing.
    """
    from huggingface_hub import CommitOperationAdd, utils

    api = _api()
    if quiet:
        utils.disable_progress_bars()
        utils.logging.set_verbosity_error()  # attempts, with their signed addresses
    with _explained(f"{source} was not pushed to {repo}"):
        additions = [
            CommitOperationAdd(path_in_repo=name, path_or_fileobj=file)
            for name, file in _contents(source).items()
        ]
        return api.create_commit(repo, additions, commit_message=message).commit_url


def address(repo: str) -> str:
    """Where a repository is seen."""
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{repo}"


def _contents(source: Path) -> dict[str, Path]:
    """The files to send, by their names there."""
    if source.is_file():
        card, drawing = source.with_suffix(".md"), source.with_suffix(".svg")
        named = {source.name: source, "README.md": card, drawing.name: drawing}
        return {name: file for name, file in named.items() if file.is_file()}
    named = {file.relative_to(source): file for file in sorted(source.rglob("*"))}
    return {
        name.as_posix(): file
        for name, file in named.items()
        if file.is_file() and not any(part.startswith(".") for part in name.parts)
    }


def _api() -> Any:
    """What speaks to the Hub in the name of the token in use."""
    import huggingface_hub
    from huggingface_hub import constants

    if constants.is_offline_mode():
        raise HubError("HF_HUB_OFFLINE is set, and pushing needs the Hub: unset it")
    token = huggingface_hub.get_token()
    if not token:
        raise HubError(f"no token was found, and pushing needs one. {_how_to_write()}")
    if not re.fullmatch(r"[!-~]+", token):
        raise HubError(f"the token has characters that no token has. {_how_to_write()}")
    session = huggingface_hub.get_session()
    # Without this it waits for ever. The type is httpx's or httpx2's, as huggingface_hub has it.
    session.timeout = type(session.timeout)(SILENCE, connect=10)
    return huggingface_hub.HfApi(token=token)


def _how_to_write() -> str:
    from huggingface_hub import constants

    return (
        f"Make one that may write at {constants.ENDPOINT}/settings/tokens, and set HF_TOKEN to it"
        " (or log in with `hf auth login`)"
    )


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    """What is raised on the way to the Hub in one message, and whether it may pass."""
    try:
        yield
    except Exception as error:  # its own, httpx's, xet's and the disk's, which share no base
        kind = PassingError if _may_pass(error) else HubError
        # The storage behind the Hub has its refusals wrapped.
        first = error.__cause__ if isinstance(error, RuntimeError) else None
        raise kind(f"{what}: {_reason(first or error, _how_to_write())}") from None


def _may_pass(error: Exception) -> bool:
    """Whether another attempt may go well; the storage's refusals do, as each is for one time."""
    status = _status(error)
    if status is not None:
        return status >= 500 or status in PASSING
    lasting = isinstance(error, ValueError | OSError)
    return not lasting or isinstance(error, ConnectionError | TimeoutError)


def _existing(source: str | os.PathLike[str]) -> Path | None:
    with contextlib.suppress(OSError, RuntimeError, ValueError):  # too long, no such user, a NUL
        path = Path(source).expanduser()
        return path if os.fspath(source) and path.exists() else None
    return None


def _repository(source: str | os.PathLike[str]) -> tuple[str, str | None]:
    """The repository, and the revision if there is one, that a source names."""
    text = os.fspath(source)
    match = REPO_ID.fullmatch(text)
    if not match or ".." in text or "--" in match["repo"] or text.endswith(NO_REPO_SUFFIXES):
        raise CheckpointError(
            f"{text!r}: no such directory or file, and it is no repository id either (owner/name"
            f" or owner/name@revision).{_hint(Path(text))}"
        )
    return match["repo"], match["revision"]


def _hint(path: Path) -> str:
    """What exists beside the first part of a path that does not."""
    with contextlib.suppress(OSError, RuntimeError, ValueError):
        path = path.expanduser()
        while not path.parent.exists():
            path = path.parent
        close = difflib.get_close_matches(path.name, os.listdir(path.parent), n=1)
        return f" Did you mean {path.parent / close[0]}?" if close else ""
    return ""


def _download(repo: str, revision: str | None, without: Sequence[str] = ()) -> Path:
    import huggingface_hub

    try:
        snapshot = huggingface_hub.snapshot_download(
            repo,
            revision=revision,
            allow_patterns=WANTED,
            ignore_patterns=[*UNWANTED, *without],
        )
    except Exception as error:  # its own, httpx's and the disk's, which share no base
        raise HubError(_explain(error, repo, revision)) from None
    if not Path(snapshot).is_dir():
        raise HubError(f"{repo}: the repository has no config, tokenizer or .safetensors file")
    return Path(snapshot)


def _headers(repo: str, revision: str | None, snapshot: Path) -> Safetensors:
    """The tensors of a repository, from its snapshot in the cache or else by requests for parts."""
    with contextlib.suppress(CheckpointError):  # the cache lacks weights, or some of them
        return Safetensors.open(snapshot)
    import huggingface_hub

    try:
        # The snapshot is named after its commit, so that config and weights are of one time.
        found = huggingface_hub.HfApi().get_safetensors_metadata(repo, revision=snapshot.name)
    except Exception as error:
        raise HubError(_explain(error, repo, revision)) from None
    tensors = {
        name: _tensor(repo, name, info, snapshot / file)
        for file, header in found.files_metadata.items()
        for name, info in header.tensors.items()
    }
    return Safetensors(tensors, {})


def _tensor(repo: str, name: str, info: Any, file: Path) -> TensorInfo:
    """One of huggingface_hub's entries; its offsets count from the end of the header."""
    if info.dtype not in DTYPES:
        raise HubError(
            f"{repo}: tensor {name} has dtype {info.dtype}; jaxtune reads {', '.join(DTYPES)}"
        )
    return TensorInfo(name, DTYPES[info.dtype], tuple(info.shape), file, *info.data_offsets)


def _explain(error: Exception, repo: str, revision: str | None) -> str:
    """One message for whatever a download raised: what is wrong, and what to do."""
    from huggingface_hub import constants, errors

    match error:
        case errors.GatedRepoError():
            return _explain_gated(error, repo)
        case errors.RepositoryNotFoundError():
            return (
                f"{repo}: there is no such directory here, and no such repository on"
                f" {constants.ENDPOINT} that this machine may see. Check the spelling; if it is"
                f" private, set HF_TOKEN to a token that can read it.{_hint(Path(repo))}"
            )
        case errors.RevisionNotFoundError():
            return (
                f"{repo} has no revision {revision or 'main'}: its branches and tags are listed on"
                f" {constants.ENDPOINT}/{repo}/tree/main"
            )
        case errors.NotASafetensorsRepoError():
            return (
                f"{repo} has no model.safetensors and no model.safetensors.index.json at its root,"
                " which are the weights that jaxtune reads"
            )
        case errors.LocalEntryNotFoundError() | errors.OfflineModeIsEnabled():
            return _explain_uncached(error, repo, revision)
        case OSError(errno=errno.ENOSPC):
            return (
                f"{repo}: the disk of the cache {constants.HF_HUB_CACHE} is full. Free some space,"
                " or set HF_HUB_CACHE to a directory on another disk"
            )
    return f"{repo}: the download failed: {_reason(error)}"


def _explain_gated(error: Exception, repo: str) -> str:
    from huggingface_hub import constants

    refused = error.response.status_code == 403
    found = "the account of your token has no access yet" if refused else "no valid token was sent"
    return (
        f"{repo} is gated, and {found}: accept its licence on {constants.ENDPOINT}/{repo}, then set"
        f" HF_TOKEN to a read token of that account ({constants.ENDPOINT}/settings/tokens)"
    )


def _explain_uncached(error: Exception, repo: str, revision: str | None) -> str:
    from huggingface_hub import constants, errors

    if constants.is_offline_mode():
        why = "HF_HUB_OFFLINE is set"
    else:
        why = f"{constants.ENDPOINT} did not provide it ({_reason(error.__cause__ or error)})"
    partly = isinstance(error, errors.IncompleteSnapshotError | errors.OfflineModeIsEnabled)
    cached = "only part of it is" if partly else "it is not"
    command = f"hf download {repo}" + (f" --revision {revision}" if revision else "")
    return (
        f"{repo}: {why}, and {cached} in the cache at {constants.HF_HUB_CACHE}. Where there is a"
        f" connection, run `{command}`, then copy models--{repo.replace('/', '--')} from the cache"
        f" there to the cache here (HF_HUB_CACHE names another).{_hint(Path(repo))}"
    )


def _status(error: BaseException) -> int | None:
    """The status of the answer that an error is about, if there was one."""
    return getattr(getattr(error, "response", None), "status_code", None)


def _reason(error: BaseException, writing: str = "") -> str:
    """An error of the network in one line, without what is secret; `writing` says how to be let."""
    import huggingface_hub

    advice = {
        401: "the token was refused: set HF_TOKEN anew, or log in again with `hf auth login`; ",
        403: f"the token may not write there. {writing}; "
        if writing
        else "the token may not read this repository; ",
        429: "too many requests, wait a few minutes; ",
    }.get(_status(error), "")
    text = " ".join(f"{type(error).__name__}: {error}".split())
    text = text.replace(huggingface_hub.get_token() or "\0", "(token)")
    text = re.sub(r"(?i:bearer)\s+\S+|hf_[A-Za-z0-9]{8,}", "(token)", text)
    return advice + re.sub(r"(https?://[^\s?]+)\?[^\s'\"]+", r"\1", text)  # signed addresses
