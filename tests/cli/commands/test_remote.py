"""Commands whose data, base, workdir and exports are in an object store, and what they refuse."""

import json
import sys

import fsspec
import pytest

import launch
from jaxtune.files import store
from jaxtune.files.store import Store
from jaxtune.workdir import lease
from jaxtune.workdir.lease import Lease
from tests.objects import names, put, unopened

RUN = "memory://runs/x"


@pytest.fixture
def arguments(base, rows, config, machine):
    """The arguments that name a config and a workdir in fsspec's own store in memory."""
    fsspec.filesystem("memory").store.clear()
    put("memory://data/base", base)
    Store("memory://data").upload("rows.jsonl", rows)
    held = {"eval": {"holdout": 4}, "generate": {"max_new_tokens": 4}}
    path = config(
        model={"path": "memory://data/base"}, data={"source": "memory://data/*.jsonl"}, **held
    )
    return ["--config", path, "--workdir", RUN]


def content(name):
    return json.loads(Store(RUN).read(name))


@pytest.mark.slow
def test_every_command_of_a_run(arguments, machine, capsys, tmp_path):
    assert launch.main(["plan", *arguments]) == 0
    assert f"written to {RUN}/plan.json" in capsys.readouterr().out
    assert content("plan.json")
    machine("b")
    assert launch.main(["train", *arguments]) == 0
    assert content("summary.json")["exported"] == f"{RUN}/export/adapter"
    machine("c")
    assert launch.main(["eval", *arguments]) == 0
    assert content("eval.json")["tuned"]["weights"] == f"{RUN}/export/adapter"
    assert launch.main(["generate", *arguments, "--prompt", "sea:"]) == 0
    assert content("answers.json")
    machine("d")
    assert launch.main(["export", *arguments, "--merged", "--to", "memory://out/merged"]) == 0
    assert {"config.json", "model.safetensors", "README.md"} <= set(names("memory://out/merged"))
    capsys.readouterr()
    machine("e")
    assert launch.main(["inspect", "memory://out/merged", "--workdir", "memory://looks"]) == 0
    assert "memory://out/merged" in capsys.readouterr().out
    assert launch.main(["preview", *arguments]) == 0
    assert launch.main(["eval", *arguments, "--adapter", "memory://runs/x/export/adapter"]) == 0
    assert str(tmp_path / "e") not in "".join(capsys.readouterr())
    written = b"".join(Store(RUN).read(each) for each in names(RUN) if each.endswith(".json"))
    assert str(tmp_path).encode() not in written


def test_an_export_that_exists_is_refused_before_any_work(arguments, failure):
    Store("memory://out/x").write("adapter_config.json", b"{}")
    there = Store(RUN)
    there.write("run.json", b'{"started": "2026-01-01", "name": "x"}')
    told = failure("export", *arguments, "--to", "memory://out/x")
    assert "memory://out/x already exists: --overwrite replaces it" in told


def test_a_folder_of_somebody_else_is_refused(arguments, failure):
    Store(RUN).write("thesis.tex", b"")
    told = failure("train", *arguments)
    assert f"{RUN} is not empty and has no run.json" in told and "thesis.tex" in told
    assert names(RUN) == ["thesis.tex"]


def test_a_run_that_another_machine_is_at_is_refused(arguments, monkeypatch, capsys):
    monkeypatch.setattr(lease, "BEAT", 0.05)
    monkeypatch.setattr(lease, "LOOK", 0.02)
    other = Lease(Store(RUN), "", "run", "another machine")
    other.take()
    assert launch.main(["train", *arguments]) == 2
    told = capsys.readouterr().err
    assert f"{RUN} was last used by" in told and f"error: another run is using {RUN}" in told
    other.release()


@pytest.mark.parametrize("name", ["model.path", "data.source", "data.tokenizer"])
def test_what_is_not_there_is_one_message(arguments, failure, name):
    told = failure("train", *arguments, f"--config.{name}=memory://data/none")
    assert "memory://data/none: no such object or folder" in told


def test_a_protocol_that_nobody_knows_is_one_message(arguments, failure):
    arguments[-1] = "s4://bucket/run"
    assert "s4:// is no protocol that fsspec knows" in failure("train", *arguments)


def test_a_package_that_is_missing_is_named_with_its_extra(arguments, failure, monkeypatch):
    store._opened.cache_clear()
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    arguments[-1] = "s3://bucket/run"
    assert "run pip install 'jaxtune[s3]', or pip install s3fs" in failure("train", *arguments)


def test_a_bucket_that_is_not_there_is_one_message(arguments, s3, failure):
    arguments[-1] = "s3://no-such-bucket-here/run"
    assert "there is no such bucket; create it first" in failure("train", *arguments)


def test_credentials_that_are_missing_are_one_message(arguments, s3, failure, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/none")
    unopened()
    arguments[-1] = f"{s3[0]}/run"
    told = failure("train", *arguments)
    assert "credentials come from AWS_ACCESS_KEY_ID" in told
