"""Downloads checkpoints from the Hugging Face Hub, and uploads exports to it."""

import contextlib
import difflib
import errno
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxtune.checkpoint.formats.safetensors import DTYPES, CheckpointError, Safetensors, TensorInfo

# Strict, because repository and revision become directory names in the cache.
REPO_ID = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>\w[\w./+-]*))?", re.ASCII)
NO_REPO_SUFFIXES = (".safetensors", ".npz", ".json", ".bin", ".pt", ".pth", ".gguf", ".git")

TOKENIZER_FILES = [
    "tokenizer*",
    "*.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template*",
]
PROCESSOR_FILES = ["preprocessor_config.json", "processor_config.json"]
GENERATION_CONFIG = "generation_config.json"
# Files that are copied and downloaded along with the weights.
COMPANIONS = [GENERATION_CONFIG, *TOKENIZER_FILES, *PROCESSOR_FILES]
WANTED = [
    "config.json",
    "adapter_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    *COMPANIONS,
]
# A star also matches slashes here. Subfolders hold other layouts and intermediate checkpoints.
UNWANTED = ["*/*", "consolidated*", "*.pth", "*.bin", "*.gguf"]

SILENCE = 120  # seconds without any data after which a request times out
# HTTP statuses that a retry may not meet again: timeouts, conflicts and rate limits.
PASSING = (408, 409, 412, 423, 425, 429)


class HubError(CheckpointError):
    """A request to the Hub, or to its local cache, failed."""


class PassingError(HubError):
    """A failure that may be temporary, of the network or of the Hub: a retry may succeed."""


def account() -> str:
    """Returns the account name of the current token; raises if the token is read-only."""
    api = _api()
    with _explained("cannot look up the account of the Hub token"):
        found = api.whoami()
    if found.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise HubError(f"the token of {found['name']} is read-only. {_how_to_write()}")
    return found["name"]


def claim(repo: str, private: bool) -> bool:
    """Creates a repository, or checks that the token may write to the existing one.

    With `private`, a new repository is created private, and an existing public one is an error.

    Returns:
      Whether the repository was created.
    """
    from huggingface_hub import errors

    api = _api()
    with _explained(f"cannot push to {repo}"):
        try:
            found = api.model_info(repo)
        except errors.RepositoryNotFoundError:
            api.create_repo(repo, private=private)
            return True
        api.auth_check(repo, write=True)
    if private and not found.private:
        raise HubError(
            f"{repo} already exists and is public, but a private repository was requested: make it"
            f" private at {api.endpoint}/{repo}/settings, choose another name, or allow a public"
            " one (--public; for a run, hub.private=False)"
        )
    return False


def upload(source: Path, repo: str, message: str, *, quiet: bool = False) -> str:
    """Uploads an export to a repository in one commit.

    Files whose contents the repository already holds, by their hash, are not sent again.

    Args:
      source: a directory, of which all but hidden files are sent, or a file, which is sent with its
        card (`.md`, as README.md) and plot (`.svg`) if they exist.
      repo: `owner/name` of an existing repository.
      message: the commit message.
      quiet: turns off huggingface_hub's progress bars and its messages below errors.

    Returns:
      The URL of the commit.
    """
    from huggingface_hub import CommitOperationAdd, utils

    api = _api()
    if quiet:
        utils.disable_progress_bars()
        utils.logging.set_verbosity_error()  # hides its log of retries, which shows signed URLs
    with _explained(f"cannot push {source} to {repo}"):
        additions = [
            CommitOperationAdd(path_in_repo=name, path_or_fileobj=file)
            for name, file in _contents(source).items()
        ]
        return api.create_commit(repo, additions, commit_message=message).commit_url


def address(repo: str) -> str:
    """Returns the URL of a repository's page."""
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{repo}"


def _contents(source: Path) -> dict[str, Path]:
    """Returns the files to upload, by their paths in the repository."""
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
    """Returns a client of the Hub that uses the current token and a request timeout."""
    import huggingface_hub
    from huggingface_hub import constants

    if constants.is_offline_mode():
        raise HubError("HF_HUB_OFFLINE is set, but pushing needs the Hub: unset it")
    token = huggingface_hub.get_token()
    if not token:
        raise HubError(f"no Hub token found, and pushing needs one. {_how_to_write()}")
    if not re.fullmatch(r"[!-~]+", token):
        raise HubError(
            f"the Hub token contains spaces or other invalid characters. {_how_to_write()}"
        )
    session = huggingface_hub.get_session()
    # Without a timeout requests may hang forever. Its type is that of httpx or httpx2, whichever
    # huggingface_hub uses.
    session.timeout = type(session.timeout)(SILENCE, connect=10)
    return huggingface_hub.HfApi(token=token)


def _how_to_write() -> str:
    from huggingface_hub import constants

    return (
        f"Create a token with write access at {constants.ENDPOINT}/settings/tokens and set HF_TOKEN"
        " to it (or log in with `hf auth login`)"
    )


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turns any exception of a Hub request into a HubError whose message begins with `what`.

    It is a PassingError if a retry may succeed.
    """
    try:
        yield
    except Exception as error:  # of huggingface_hub, httpx, xet or the disk: no common base
        kind = PassingError if _may_pass(error) else HubError
        # Errors of the storage behind the Hub arrive wrapped in a RuntimeError.
        first = error.__cause__ if isinstance(error, RuntimeError) else None
        raise kind(f"{what}: {_reason(first or error, _how_to_write())}") from None


def _may_pass(error: Exception) -> bool:
    """Whether a retry may succeed.

    Errors of the storage behind the Hub count as temporary, because each concerns only the signed
    URL of one attempt.
    """
    status = _status(error)
    if status is not None:
        return status >= 500 or status in PASSING
    lasting = isinstance(error, ValueError | OSError)
    return not lasting or isinstance(error, ConnectionError | TimeoutError)


def existing(source: str | os.PathLike[str]) -> Path | None:
    """Returns the local path of a source, or None if there is none."""
    with contextlib.suppress(OSError, RuntimeError, ValueError):  # too long, no such user, NUL
        path = Path(source).expanduser()
        return path if os.fspath(source) and path.exists() else None
    return None


def repository(source: str | os.PathLike[str]) -> tuple[str, str | None]:
    """Splits a Hub source into the repository and its revision, if one is given."""
    text = os.fspath(source)
    match = REPO_ID.fullmatch(text)
    if not match or ".." in text or "--" in match["repo"] or text.endswith(NO_REPO_SUFFIXES):
        raise CheckpointError(
            f"{text!r}: no such directory or file, and not a repository id (owner/name or"
            f" owner/name@revision).{_hint(Path(text))}"
        )
    return match["repo"], match["revision"]


def _hint(path: Path) -> str:
    """Suggests an existing name that is close to the first missing component of a path.

    It begins with a space; it is "" if nothing is close.
    """
    with contextlib.suppress(OSError, RuntimeError, ValueError):
        path = path.expanduser()
        while not path.parent.exists():
            path = path.parent
        close = difflib.get_close_matches(path.name, os.listdir(path.parent), n=1)
        return f" Did you mean {path.parent / close[0]}?" if close else ""
    return ""


def download(repo: str, revision: str | None, without: Sequence[str] = ()) -> Path:
    """Returns the local copy of a repository, downloaded unless it is in the cache already.

    `without` are patterns of files that are left out.
    """
    import huggingface_hub

    try:
        snapshot = huggingface_hub.snapshot_download(
            repo,
            revision=revision,
            allow_patterns=WANTED,
            ignore_patterns=[*UNWANTED, *without],
        )
    except Exception as error:  # of huggingface_hub, httpx or the disk: no common base
        raise HubError(_explain(error, repo, revision)) from None
    if not Path(snapshot).is_dir():
        raise HubError(f"{repo}: the repository has no config, tokenizer or .safetensors file")
    return Path(snapshot)


def headers(repo: str, revision: str | None, snapshot: Path) -> Safetensors:
    """Returns a repository's tensors from its cached snapshot, else by requests for the headers."""
    with contextlib.suppress(CheckpointError):  # some or all weights are not in the cache
        return Safetensors.open(snapshot)
    import huggingface_hub

    try:
        # The snapshot directory is named after its commit, so config and weights match.
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
    """Converts huggingface_hub's tensor entry; its offsets count from the end of the header."""
    if info.dtype not in DTYPES:
        raise HubError(
            f"{repo}: tensor {name} has dtype {info.dtype}; jaxtune reads {', '.join(DTYPES)}"
        )
    return TensorInfo(name, DTYPES[info.dtype], tuple(info.shape), file, *info.data_offsets)


def _explain(error: Exception, repo: str, revision: str | None) -> str:
    """Returns the message for an exception of a download: what is wrong, and what to do."""
    from huggingface_hub import constants, errors

    match error:
        case errors.GatedRepoError():
            return _explain_gated(error, repo)
        case errors.RepositoryNotFoundError():
            return (
                f"{repo}: no such directory, and no repository of that name on {constants.ENDPOINT}"
                " that this machine has access to. Check the spelling; if it is private, set"
                f" HF_TOKEN to a token that can read it.{_hint(Path(repo))}"
            )
        case errors.RevisionNotFoundError():
            return (
                f"{repo} has no revision {revision or 'main'}: its branches and tags are listed at"
                f" {constants.ENDPOINT}/{repo}/tree/main"
            )
        case errors.NotASafetensorsRepoError():
            return (
                f"{repo} has neither model.safetensors nor model.safetensors.index.json at its"
                " root, and jaxtune reads no other weights from the Hub"
            )
        case errors.LocalEntryNotFoundError() | errors.OfflineModeIsEnabled():
            return _explain_uncached(error, repo, revision)
        case OSError(errno=errno.ENOSPC):
            return (
                f"{repo}: the disk with the cache {constants.HF_HUB_CACHE} is full. Free some"
                " space, or set HF_HUB_CACHE to a directory on another disk"
            )
    return f"{repo}: the download failed: {_reason(error)}"


def _explain_gated(error: Exception, repo: str) -> str:
    from huggingface_hub import constants

    refused = error.response.status_code == 403
    found = "the account of your token has no access yet" if refused else "no valid token was sent"
    return (
        f"{repo} is gated, and {found}: accept its licence at {constants.ENDPOINT}/{repo}, then set"
        f" HF_TOKEN to a read token of that account ({constants.ENDPOINT}/settings/tokens)"
    )


def _explain_uncached(error: Exception, repo: str, revision: str | None) -> str:
    from huggingface_hub import constants, errors

    if constants.is_offline_mode():
        why = "HF_HUB_OFFLINE is set"
    else:
        reason = _reason(error.__cause__ or error)
        why = f"it cannot be downloaded from {constants.ENDPOINT} ({reason})"
    partly = isinstance(error, errors.IncompleteSnapshotError | errors.OfflineModeIsEnabled)
    cached = "only part of it is" if partly else "it is not"
    command = f"hf download {repo}" + (f" --revision {revision}" if revision else "")
    return (
        f"{repo}: {why}, and {cached} in the cache at {constants.HF_HUB_CACHE}. On a machine with"
        f" internet access, run `{command}`, then copy models--{repo.replace('/', '--')} from its"
        f" cache to this one (or to another that HF_HUB_CACHE names).{_hint(Path(repo))}"
    )


def _status(error: BaseException) -> int | None:
    """Returns the HTTP status of the response that an error carries, if any."""
    return getattr(getattr(error, "response", None), "status_code", None)


def _reason(error: BaseException, writing: str = "") -> str:
    """Describes a network error in one line, without tokens and URL signatures.

    `writing` is the advice for a token that is refused for lack of write access.
    """
    import huggingface_hub

    advice = {
        401: "the token was rejected: set HF_TOKEN to a valid one, or log in again with"
        " `hf auth login`; ",
        403: f"the token has no write access. {writing}; "
        if writing
        else "the token has no read access to this repository; ",
        429: "too many requests: wait a few minutes; ",
    }.get(_status(error), "")
    text = " ".join(f"{type(error).__name__}: {error}".split())
    text = text.replace(huggingface_hub.get_token() or "\0", "(token)")
    text = re.sub(r"(?i:bearer)\s+\S+|hf_[A-Za-z0-9]{8,}", "(token)", text)
    return advice + re.sub(r"(https?://[^\s?]+)\?[^\s'\"]+", r"\1", text)  # signed URLs
