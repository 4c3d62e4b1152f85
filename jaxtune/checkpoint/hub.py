"""Where a checkpoint lies: a path as it is, or a repository of the Hugging Face Hub, downloaded."""

import contextlib
import difflib
import errno
import os
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jaxtune.checkpoint.files import DTYPES, CheckpointError, Safetensors, TensorInfo

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


class HubError(CheckpointError):
    """A repository of the Hub that cannot be had."""


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


def _reason(error: BaseException) -> str:
    """An error of the network in one line, without what looks like a token."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    advice = {
        401: "the token was refused: set HF_TOKEN anew, or log in again with `hf auth login`; ",
        403: "the token may not read this repository; ",
        429: "too many requests, wait a few minutes; ",
    }.get(status, "")
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return advice + re.sub(r"(?i:bearer)\s+\S+|hf_[A-Za-z0-9]{8,}", "(token)", text)
