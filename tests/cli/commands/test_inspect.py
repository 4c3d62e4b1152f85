"""The small parts of `launch.py inspect`; the report has tests of its own."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import launch
from jaxtune.cli.commands.inspect import checkpoint_name, kinds, meant


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("maker/model@refs/pr/1", "model"),
        ("google/gemma-3-270m", "gemma-3-270m"),
        ("google/gemma-3-270m@main", "gemma-3-270m"),
        (".", "here"),
        ("../here/", "here"),
    ],
)
def test_default_workdir(source, name, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert checkpoint_name(source) == name


def report(capsys, *arguments) -> tuple[str, dict]:
    """What a command prints, and the JSON it writes."""
    assert launch.main(["inspect", *map(str, arguments), "--workdir", "here"]) == 0
    return capsys.readouterr().out, json.loads(Path("here/inspect.json").read_text())


def test_quant_alone_tells_sizes(base, capsys):
    printed, found = report(capsys, base, "--quant")
    sizes = {size["kind"]: size for size in found["quant"]["sizes"]}
    assert [*sizes] == ["float32", "bfloat16", "int8", "int4", "nf4", "nf4-double"]
    assert sizes["float32"]["bytes"] == found["totals"]["bytes_in_float32"]
    assert found["quant"]["measured"] == []
    row = next(line for line in printed.splitlines() if line.startswith("nf4-double "))
    assert row.endswith(f"{sizes['nf4-double']['bits']:.2f}")
    assert "everything else is then in bfloat16" in " ".join(printed.split())


def test_quant_before_the_checkpoint_takes_no_kinds_of_it(base, capsys):
    assert report(capsys, base, "--quant") == report(capsys, "--quant", base)
    Path("near").symlink_to(base)
    assert meant(None, "near") == ("near", "") and meant("near", "nf4") == ("near", "nf4")
    assert meant(None, "owner/name") == ("owner/name", "") and meant("near", None)[1] is None


@pytest.mark.parametrize(
    "options, found",
    [([], ""), (["--quant"], ""), (["--quant", "nf4"], "found only --quant '")],
)
def test_without_a_checkpoint(options, found, failure):
    message = failure("inspect", *options)
    assert (
        "inspect: expected a checkpoint, as a directory or owner/name" in message
        and found in message
    )


def test_without_quant_there_is_none(base, capsys):
    printed, found = report(capsys, base)
    assert found["quant"] is None and "nf4" not in printed


@pytest.mark.slow
def test_quant_with_a_kind_measures_it(base, capsys):
    Path("text.txt").write_text("sea and sand: dusk")
    printed, found = report(capsys, base, "--quant=nf4", "--text", "text.txt")
    [measured] = found["quant"]["measured"]
    assert (measured["kind"], len(measured["leaves"])) == ("nf4", 7)
    assert f"KL divergence from full precision {measured['predictions']['kl']:.3g}" in " ".join(
        printed.split()
    )
    said = " ".join(printed.split())
    rules = [tuple(rule) for rule in measured["advice"]["quant"]]
    assert f"set `quant` to: {rules}" in said
    for leaf in measured["leaves"]:
        line = next(
            each for each in printed.split("nf4  ")[-1].splitlines() if leaf["path"] in each
        )
        assert f"{leaf['relative']:.2%}" in line and f"{leaf['kl']:.3g}" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--quant=nf5"], "quant 'nf5': expected one of nf4, nf4-double, int4, int8"),
        (["--quant=nf4,"], "quant '': expected one of"),
        (["--text", "text.txt"], "used to measure kinds: name one, as in --quant=nf4"),
        (["--quant", "--text", "text.txt"], "used to measure kinds: name one, as in --quant=nf4"),
        (["--quant=nf4", "--text", "text.txt"], "text.txt is empty"),
        (["--quant=nf4", "--text", "none.txt"], "No such file or directory: 'none.txt'"),
    ],
)
def test_what_cannot_be_measured(base, failure, arguments, message):
    Path("text.txt").write_text("")
    assert message in failure("inspect", base, *arguments)
    assert not Path("runs").exists()


def test_kinds_are_a_list():
    assert kinds(None) is None and kinds("") == []
    assert kinds("nf4, int8,nf4") == ["nf4", "int8"]


def test_names_in_a_checkpoint_cannot_control_the_terminal(base, tmp_path, capsys):
    spoilt = shutil.copytree(base, tmp_path / "a\x1b]0;owned\x07b\x1b[2Jc")
    printed, _ = report(capsys, spoilt, "--names")
    assert r"a\x1b]0;owned\x07b\x1b[2Jc: " in printed and "\x1b" not in printed
    tensors = load_file(spoilt / "model.safetensors")
    save_file({**tensors, "x\x1b[2J": np.zeros(1)}, spoilt / "model.safetensors")
    assert launch.main(["inspect", str(spoilt)]) == 2
    printed = capsys.readouterr()
    assert r"found 'x\x1b[2J'" in printed.err and "\x1b" not in printed.err + printed.out
