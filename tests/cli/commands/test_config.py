"""The config command."""

import json

import launch


def test_fields_and_files(config, failure, capsys):
    assert launch.main(["config", "optim.lr"]) == 0
    assert capsys.readouterr().out.startswith("  optim.lr = 0.0001")
    assert launch.main(["config", "--config", config(), "--config.optim.lr=0.5"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["optim"]["lr"] == 0.5 and found["steps"] == 2 and "hub" in found
    assert "(did you mean optim.lr?)" in failure("config", "optim.lrr")
    assert "--config.steps=1: add --config FILE" in failure("config", "--config.steps=1")
    assert "optim: cannot be combined with --config" in failure(
        "config", "optim", "--config", config()
    )
