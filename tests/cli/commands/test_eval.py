"""`launch.py eval` on a finished run: what it writes, what it does not do twice, what it tells."""

import json
import math
import shutil
from pathlib import Path

import pytest

import launch
from jaxtune.decoding.text import TextGenerator
from jaxtune.evaluation import held_out
from tests import tiny
from tests.runs.test_run import lines

HELD = 11  # of batches of 4 the last is not full


@pytest.fixture(scope="module")
def settings(base, rows):
    return tiny.settings(
        base,
        rows,
        steps=6,
        optim={"lr": 0.03},
        eval={"holdout": HELD, "every": 3, "answers": 3},
        generate={"max_new_tokens": 8, "batch": 4},
        checkpoint={"metric": "exact"},
    )


@pytest.fixture(scope="module")
def place(settings, tmp_path_factory):
    """A directory with the config and a finished run of it, evaluated with --both."""
    place = tmp_path_factory.mktemp("evaluated")
    (place / "x.py").write_text(f"def get_config():\n    return {settings!r}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(held_out, "CHUNK", 4)
        for command in (["train"], ["eval", "--both"]):
            assert launch.main([*command, *arguments(place, place / "run")]) == 0
    return place


def arguments(place: Path, workdir: Path) -> list[str]:
    return ["--config", str(place / "x.py"), "--workdir", str(workdir)]


@pytest.fixture
def run(place, tmp_path, monkeypatch):
    """A copy of that run."""
    monkeypatch.setattr(held_out, "CHUNK", 4)
    return Path(shutil.copytree(place / "run", tmp_path / "run", symlinks=True))


@pytest.fixture
def evaluate(place, run, capsys):
    """`evaluate("--both")` is what is printed."""

    def evaluate(*options):
        assert launch.main(["eval", *arguments(place, run), *options]) == 0
        return capsys.readouterr().out

    return evaluate


@pytest.fixture
def answered(monkeypatch):
    """How many rows were answered at once, one number each time."""
    found, answers = [], TextGenerator.answers

    def counting(generator, prompts, *rest):
        found.append(len(prompts))
        return answers(generator, prompts, *rest)

    monkeypatch.setattr(TextGenerator, "answers", counting)
    return found


def of(run: Path, name: str) -> list[Path]:
    """The directories of a contender's answers."""
    return sorted((run / "eval").glob(f"{name}-*"))


def predictions(directory: Path) -> list[dict]:
    return list(map(json.loads, (directory / "predictions.jsonl").read_text().split("\n")[:-1]))


@pytest.mark.slow
def test_what_is_written(run, rows):
    (base,), (tuned,) = of(run, "base"), of(run, "tuned")
    source = [json.loads(line) for line in rows.read_text().splitlines()]
    for directory in (base, tuned):
        found = predictions(directory)
        assert [line["row"] for line in found] == list(range(HELD))
        numbers = [int(line["place"].rpartition(":")[2]) for line in found]
        assert all(line["place"].startswith(f"{rows}:") for line in found)
        assert len(set(numbers)) == HELD
        for number, line in zip(numbers, found, strict=True):
            assert line["prompt"] == source[number - 1]["prefix"]
            assert line["references"] == [source[number - 1]["suffix"].strip()]
            exact = line["answer"].split() == line["references"][0].split()
            assert line["scores"] == {"exact": float(exact)}
            assert 1 <= line["tokens"] <= 8 and line["log_probability"] < 0
        assert sorted(file.name for file in directory.iterdir()) == [
            "about.json", "metrics.json", "predictions.jsonl",
        ]  # fmt: skip
    assert [a["place"] for a in predictions(base)] == [b["place"] for b in predictions(tuned)]
    assert [a["answer"] for a in predictions(base)] != [b["answer"] for b in predictions(tuned)]


@pytest.mark.slow
def test_the_verdict(run, base):
    found = json.loads((run / "eval.json").read_text())
    assert list(found) == ["base", "tuned", "tuned_less_base"]
    assert found["base"]["weights"] == str(base)
    assert found["tuned"]["weights"].endswith("/run/export/adapter")
    for name in ("base", "tuned"):
        (directory,) = of(run, name)
        metrics = json.loads((directory / "metrics.json").read_text())
        assert metrics == {"rows": HELD, "metrics": found[name]["metrics"]}
        assert found[name]["rows"] == HELD
        assert Path(found[name]["predictions"]).name == "predictions.jsonl"
        assert found[name]["perplexity"] == pytest.approx(math.exp(found[name]["loss"]))
    gained = found["tuned_less_base"]["exact"]
    assert gained.keys() == {"value", "low", "high", "intervals_overlap"}
    values = [found[name]["metrics"]["exact"]["value"] for name in ("base", "tuned")]
    assert gained["value"] == pytest.approx(values[1] - values[0])


@pytest.mark.slow
def test_held_out_losses_are_those_of_the_run(run):
    """Of the base as before training, of the adapter as of the checkpoint that was exported."""
    found = json.loads((run / "eval.json").read_text())
    logged = {line["step"]: line["loss"] for line in lines(run, "eval")}
    summary = json.loads((run / "summary.json").read_text())
    # Without adapters, and with ones that were read from a file, XLA fuses otherwise.
    assert found["base"]["loss"] == pytest.approx(logged[0], rel=1e-6)
    assert found["tuned"]["loss"] == pytest.approx(logged[summary["eval_step"]], rel=1e-6)
    assert found["tuned"]["loss"] < found["base"]["loss"] - 0.01


@pytest.mark.slow
def test_answers_in_training(run):
    answers = lines(run, "answers")
    assert [line["step"] for line in answers] == [0, 3, 6]
    for line in answers:
        directory = run / f"eval/step-{line['step']:06}"
        found = predictions(directory)
        assert len(found) == 3
        metrics = json.loads((directory / "metrics.json").read_text())["metrics"]
        assert metrics["exact"]["value"] == pytest.approx(line["exact"])
    # The first rows of those that eval answers, and at the end as the adapter does.
    (base,), (tuned,) = of(run, "base"), of(run, "tuned")
    best = json.loads((run / "summary.json").read_text())["eval_step"]
    for step, directory in ((0, base), (best, tuned)):
        before = [each["answer"] for each in predictions(run / f"eval/step-{step:06}")]
        assert before == [each["answer"] for each in predictions(directory)][:3]


@pytest.mark.slow
def test_nothing_is_answered_twice(evaluate, run, answered):
    before = contents(run)
    printed = evaluate("--both")
    assert contents(run) == before and not answered
    header, exact, loss, perplexity, written, predicted = printed.splitlines()
    assert header.split() == ["base", "tuned", "tuned", "-", "base"]
    assert exact.startswith("exact ") and exact.count("[") == 3
    assert loss.startswith("held-out loss ") and perplexity.startswith("perplexity ")
    assert str(run / "eval.json") in written
    assert predicted.count("/predictions.jsonl") == 2
    (only,) = [line for line in evaluate("--base").splitlines() if line.startswith("exact")]
    assert only.count("[") == 1 and not answered
    # How many are answered at once changes no answer, so those that are there stand.
    evaluate("--both", "--config.generate.batch=1")
    assert contents(run) == before and not answered


@pytest.mark.slow
def test_a_run_that_is_asked_for_again_changes_nothing(place, evaluate, run, answered):
    before = contents(run)
    adapter = run / "export/adapter/adapter_model.safetensors"
    written = adapter.stat().st_mtime_ns
    assert launch.main(["train", *arguments(place, run)]) == 0
    assert adapter.stat().st_mtime_ns > written
    evaluate("--both")
    assert contents(run) == before and not answered


@pytest.mark.slow
def test_earlier_results_stay(evaluate, run):
    (base,), (tuned,) = of(run, "base"), of(run, "tuned")
    both = run / "eval" / f"results-{base.name}-{tuned.name}.json"
    before = both.read_text()
    assert before == (run / "eval.json").read_text()
    printed = evaluate("--base")
    alone = run / "eval" / f"results-{base.name}.json"
    assert str(alone) in printed and both.read_text() == before
    assert [*json.loads(alone.read_text())] == ["base"]
    assert alone.read_text() == (run / "eval.json").read_text() != before


@pytest.mark.slow
def test_plots_lie_beside_the_predictions(place, tmp_path, capsys):
    rows = [{"prompt": f"A lamp of {n}:", "completion": f" {n}"} for n in range(10, 16)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes = ["data.task=price", f"data.source={tmp_path}/rows.jsonl", "eval.holdout=4"]
    options = [f"--config.{change}" for change in changes]
    adapter = str(place / "run/export/adapter")
    command = ["eval", *arguments(place, tmp_path / "run"), "--both", "--adapter", adapter]
    assert launch.main([*command, *options]) == 0
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "run/eval.json").read_text())
    for name in ("base", "tuned"):
        (directory,) = of(tmp_path / "run", name)
        files = [directory / file for file in ("prices.svg", "errors.svg")]
        assert found[name]["plots"] == list(map(str, files))
        for file in files:
            assert str(file) in printed and f": {name}" in file.read_text()


def contents(run: Path) -> dict[str, bytes]:
    """All files of answers."""
    return {str(file.relative_to(run)): file.read_bytes() for file in run.glob("eval/*/*")}


@pytest.mark.slow
@pytest.mark.parametrize("share, left", [(0.2, [4, 4, 3]), (0.6, [4, 3]), (0.97, [3])])
def test_an_interrupted_one_goes_on(share, left, evaluate, run, answered):
    before = contents(run)
    (tuned,) = of(run, "tuned")
    text = (tuned / "predictions.jsonl").read_bytes()
    (tuned / "predictions.jsonl").unlink()
    (tuned / "metrics.json").unlink()
    (tuned / held_out.PARTIAL).write_bytes(text[: int(len(text) * share)])
    evaluate("--both")
    assert answered == left
    assert contents(run) == before


@pytest.mark.slow
def test_a_batch_that_is_not_full_changes_nothing(evaluate, run, answered):
    (tuned,) = of(run, "tuned")
    before = predictions(tuned)
    shutil.rmtree(run / "eval")
    evaluate("--config.generate.batch=1")
    assert of(run, "tuned") == [tuned] and sum(answered) == HELD
    for one, other in zip(predictions(tuned), before, strict=True):
        # Sums over other shapes are rounded otherwise.
        assert one.pop("log_probability") == pytest.approx(other.pop("log_probability"), rel=1e-5)
        assert one == other


@pytest.mark.slow
def test_other_settings_have_a_directory_of_their_own(evaluate, run, answered):
    before = contents(run)
    evaluate("--config.generate.max_new_tokens=5")
    assert sum(answered) == HELD and contents(run).items() > before.items()
    assert len(of(run, "tuned")) == 2 and len(of(run, "base")) == 1
    (other,) = set(of(run, "tuned")) - {(run / name).parent for name in before}
    assert max(each["tokens"] for each in predictions(other)) == 5


@pytest.mark.slow
def test_a_prompt_without_room_for_its_answer(place, run, failure):
    message = failure("eval", *arguments(place, run), "--config.generate.max_new_tokens=250")
    assert "rows.jsonl:" in message and "with 250 new ones exceed the model's" in message


@pytest.mark.parametrize(
    "options, changes, problem",
    [
        ([], {"eval": {"holdout": 5}}, "runs/x/export contains no adapter or merged model: train"),
        (["--base"], {}, "no rows to evaluate on: set eval.source, eval.split or eval.holdout"),
        (["--base", "--both"], {}, "not allowed with argument --base"),
        (["--base", "--adapter", "a"], {}, "--base evaluates the untuned base only: it cannot be"),
        (["--adapter", "./nowhere"], {"eval": {"holdout": 5}}, "./nowhere"),
    ],
)
def test_what_cannot_be_evaluated(options, changes, problem, config, failure):
    assert problem in failure("eval", "--config", config(**changes), *options)
    assert not Path("runs").exists()
