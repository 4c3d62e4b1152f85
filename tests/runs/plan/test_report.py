"""What a plan says: its text, the message of a run that does not fit, and plan.json."""

import json
import math
import re
from dataclasses import replace

import pytest

from jaxtune.runs.plan import report
from jaxtune.runs.plan.change import Fit
from jaxtune.runs.plan.plan import changed, overrides


@pytest.mark.slow
def test_a_plan_lists_each_program_with_its_items(whole):
    lines = "\n".join(report.text(whole[1]))
    for line in (
        r"programs +5 to compile",
        r"training step, 4 × 64 ",
        r"held-out loss, 4 × ",
        r"answers: prompts, 3 × \d+ \+ 5 ",
        r"answers: decoding, 3 × \d+ \+ 5 ",
        r"program +base +trained +optimiser +gradients +cache +batch +activations +peak",
        r"fits +\S+ [KM]iB, 0% of the \S+ GiB that a run may take on cpu",
    ):
        assert re.search(line, lines), (line, lines)


@pytest.mark.slow
def test_a_refusal_names_the_largest_program_and_the_changes(whole):
    then = whole[1]
    plan = replace(then, target=replace(then.target, limit_bytes=100 * 1024))
    assert plan.fits is False and "it does NOT fit" in report.text(plan)[-1]
    message = report.refusal(plan, ({"batch.accumulate": 4}, then))
    assert message.startswith("this run does not fit: to train, a device would need ")
    assert "a run may take 100.00 KiB on cpu" in message
    assert message.endswith("and fits:\n  --config.batch.accumulate=4")
    assert "use more devices" in report.refusal(plan, None)


def test_overrides_are_arguments_of_a_command(planner):
    config = planner.assembly.config
    changes = {"model.quant": "nf4", "batch.rows": 8, "mesh.fsdp": 2}
    assert overrides(changes) == [
        "--config.model.quant=nf4", "--config.batch.rows=8", "--config.mesh.fsdp=2"
    ]  # fmt: skip
    assert changed(config, changes).batch.rows == 8


@pytest.mark.slow
def test_plan_json_holds_what_the_text_says(whole):
    planner, plan = whole
    content = json.loads(json.dumps(report.content(plan, planner.rows, None, None, None)))
    assert content["peak_bytes"] == max(each["peak_bytes"] for each in content["programs"])
    assert [each["name"] for each in content["programs"]] == [
        "train", "evaluate", "prefill", "decode"
    ]  # fmt: skip
    for each in content["programs"]:
        assert sum(each["items"].values()) == each["peak_bytes"]
    assert content["fits"] is True and content["limit_bytes"] == plan.target.limit_bytes
    assert content["steps"] == 4 and content["programs_to_compile"] == plan.count
    assert 0 < content["scored_share"] < 1 and 0 <= content["padding_share"] < 1
    leaves = content["trains"]["leaves"]
    assert content["trains"]["parameters"] == sum(map(math.prod, leaves.values()))
    assert content["changes"] is None and content["fit"] is None
    made = ({"batch.accumulate": 4}, plan)
    content = report.content(plan, planner.rows, made, Fit(2, plan, {"batch.rows": 2}, {}), 10)
    assert content["changes"]["overrides"] == ["--config.batch.accumulate=4"]
    assert content["fit"]["rows"] == 2 and content["sample"] == 10


@pytest.mark.slow
def test_a_fit_is_shown_as_overrides(whole):
    fit = Fit(2, whole[1], {"batch.rows": 2}, {"batch.accumulate": 2})
    first, largest, second, same = report.fit_text(fit, rows=4)
    assert first.startswith("the largest batch that fits has 2 rows at once, in ")
    assert (largest, same) == ("  --config.batch.rows=2", "  --config.batch.accumulate=2")
    assert second == "for the config's 4 rows in each step:"
    unknown = replace(whole[1], target=replace(whole[1].target, limit_bytes=None))
    assert unknown.fits is None and "does not tell how much it has" in report.verdict(unknown)
    assert report.fit_text(Fit(0, None, {}, {}), rows=4)[0].startswith("no batch fits")
