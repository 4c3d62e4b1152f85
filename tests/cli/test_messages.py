"""What is mistyped or cannot be opened ends in one message that says what to type instead."""

import os
from argparse import Namespace
from pathlib import Path

import pytest

import launch
from jaxtune.cli.commands import COMMANDS
from jaxtune.cli.messages import told
from jaxtune.config.load import parse
from jaxtune.files import UnwritableError

LEAST = dict(model=dict(path="base"), data=dict(source=["rows.jsonl", "more.jsonl"]))
HOSTILE = "a\x1b]0;owned\x07b\x1b[2Jc"
SEEN = r"a\x1b]0;owned\x07b\x1b[2Jc"


@pytest.fixture
def failure(capsys, tmp_path, monkeypatch):
    """`failure("train", …)` is the one message of a command that fails, and nothing else."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")

    def failure(*arguments):
        assert launch.main(list(arguments)) == 2
        printed = capsys.readouterr()
        assert printed.out == "" and printed.err.startswith("error: ")
        assert not set(printed.err) & set("\x1b\x07\x9b")
        return printed.err.removeprefix("error: ").removesuffix("\n")

    return failure


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--lr", "3"], "'--lr': launch.py train has no such option; did you mean --config.opt"),
        (["--lr"], "did you mean --config.optim.lr=VALUE?"),
        (["--optim.lr=3"], "did you mean --config.optim.lr=3?"),
        (["--learning-rate", "3"], "did you mean --config.optim.lr=3?"),
        (["--batch_size=8"], "did you mean --config.batch.rows=8?"),
        (["--lora-r", "8"], "did you mean --config.trainable.rank=8?"),
        (["--epochs", "3"], "did you mean --config.epochs=3?"),
        (["--worcdir=x"], "did you mean --workdir?"),
        (["--nothing-like-it"], "has no such option; see launch.py train --help"),
        (["extra"], "'extra': unexpected argument (see launch.py train --help)"),
        (["--" + "x" * 10_000], "… launch.py train has no such option"),
    ],
)  # fmt: skip
def test_an_unknown_option_suggests_a_field(arguments, message, failure):
    found = failure("train", "--config", "x.py", *arguments)
    assert message.replace("… ", "…: ") in found and len(found) < 200


def test_commands_without_a_config_suggest_no_field(failure):
    assert "--config" not in failure("inspect", "x", "--lr", "3")
    assert failure("inspect", "x", "--nmaes").endswith("did you mean --names?")


def test_an_unknown_command_suggests_one(failure):
    assert failure("trian").startswith("'trian' is not a command (did you mean train?); choose ")
    assert "(to train, pass --config configs/x.py)" in failure("configs/x.py")
    assert all(name in failure("x" * 10_000) for name in COMMANDS)
    assert len(failure("x" * 10_000)) < 300


PATHS = [
    ["train", "--config", "x.py", "--workdir"],
    ["train", "--config"],
    ["eval", "--config", "x.py", "--adapter"],
    ["generate", "--config", "x.py", "--file"],
    ["generate", "--config", "x.py", "--image"],
    ["generate", "--config", "x.py", "--adapter"],
    ["export", "--config", "x.py", "--to"],
    ["export", "--config", "x.py", "--adapter"],
    ["inspect"],
    ["inspect", "x", "--workdir"],
    ["inspect", "x", "--text"],
    ["tokens"],
    ["tokens", "x", "--text"],
    ["tokens", "x", "--workdir"],
    ["prepare", "totto"],
    ["prepare", "totto", "x"],
    ["push"],
    ["push", "x"],
    ["config", "--config"],
]


@pytest.mark.parametrize("arguments", PATHS, ids=" ".join)
def test_no_path_may_be_empty_or_impossible(arguments, failure, tmp_path):
    assert "expected a path or a name, found an empty text" in failure(*arguments, "")
    assert "it contains a null character" in failure(*arguments, "a\0b")
    assert "5,000 characters, at most 4,096" in failure(*arguments, "x" * 5000)
    assert "home directory is not known" in failure(*arguments, "~nobody-of-this-name/x")
    assert os.listdir(tmp_path) == []


def test_numbers_of_options_are_bounded(failure):
    assert "expected a whole number from 1 to" in failure("preview", "--config=x", "--rows=1e9")
    assert "expected a whole number from 0 to 9,999,999" in failure(
        "tokens", "x", "--up-to=10000000"
    )
    mesh = f"fsdp={'9' * 5000}"
    assert "of up to 999,999 devices" in failure("inspect", "x", "--mesh", mesh)


def options(**given) -> Namespace:
    names = {name: f"--{name}" for name in given}
    return Namespace(command="train", names=names, settings=parse(LEAST), **given)


@pytest.mark.parametrize(
    "file, source",
    [
        ("themes.txt", "--file"),
        ("base/config.json", "model.path"),
        ("more.jsonl", "data.source"),
        ("runs/x/metrics.jsonl", "--workdir"),
    ],
)
def test_an_error_of_a_file_says_what_names_it(file, source):
    error = FileNotFoundError(2, "No such file or directory", file)
    given = options(file=Path("themes.txt"), workdir=Path("runs/x"))
    assert told(error, given) == f"No such file or directory: {file!r}, from {source}"


def test_an_error_without_a_file_says_which_command():
    error = OSError(5, "Input/output error")
    message = "Input/output error, in a file that the command train reads or writes"
    assert told(error, options()) == message
    assert told(error) == "Input/output error"
    other = FileNotFoundError(2, "No such file or directory", "elsewhere")
    assert told(other, options()) == "No such file or directory: 'elsewhere'"


def test_what_cannot_be_written_names_the_option_that_chose_it():
    error = OSError(28, "No space left on device")
    given = options(to=Path("out"), workdir=Path("runs/x"))
    for file, hint in (
        ("runs/x/config.json", "; choose another path with --workdir"),
        ("out/model.safetensors", "; choose another path with --to"),
        ("elsewhere", ""),
    ):
        message = f"{file} cannot be written: No space left on device{hint}"
        assert told(UnwritableError(Path(file), error), given) == message


def test_errors_cannot_control_the_terminal(failure):
    assert told(ValueError(f"tensor {HOSTILE}")) == f"tensor {SEEN}"
    assert SEEN in failure("inspect", f"./{HOSTILE}")
    assert SEEN in failure("--config", f"{HOSTILE}.py")
    Path("x.py").write_text(f"def get_config():\n    return {LEAST!r}\n")
    assert len(failure("--config", "x.py", f"--config.{'k' * 10_000}={'v' * 10_000}")) < 400
