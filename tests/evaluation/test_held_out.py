"""Rows that are asked, answers that are kept, and runs that choose by them."""

import json
from types import SimpleNamespace

import pytest

from jaxtune.assembly.assemble import Assembly
from jaxtune.config import load as configs
from jaxtune.data.errors import NothingScored, TooLong
from jaxtune.data.sources import open_source
from jaxtune.data.tokenizer import Tokenizer
from jaxtune.decoding.text import Answer
from jaxtune.display.progress import Quiet
from jaxtune.evaluation import held_out
from jaxtune.metrics.exact import EXACT
from jaxtune.metrics.intervals import Figure
from jaxtune.runs import run
from jaxtune.runs.loop import Run
from jaxtune.workdir.checkpoints import Checkpoints
from tests import tiny
from tests.runs.test_run import lines

ABOUT = {"seed": 0}


@pytest.fixture(scope="module")
def make(base, rows):
    """`make(data={…})` is a config of these tests with changes to its sections."""

    def make(**changes):
        values = tiny.settings(
            base,
            rows,
            optim={"lr": 0.03},
            eval={"holdout": 8, "every": 1},
            generate={"max_new_tokens": 8, "batch": 2},
        )
        for section, fields in changes.items():
            values[section] = {**values.get(section, {}), **fields}
        return configs.parse(values)

    return make


@pytest.fixture(scope="module")
def eval_rows(make, base):
    """`eval_rows(records, data={…})` is a list of rows to answer, made of records."""

    def eval_rows(directory, records, **changes):
        file = directory / "rows.jsonl"
        file.write_text("".join(json.dumps(record) + "\n" for record in records))
        config = make(**changes)
        assembly = Assembly(config, base, "2026-11-21")
        source = open_source(str(file))
        return held_out.eval_rows(config.data, source, assembly.encoder, assembly.task)

    return eval_rows


class Told:
    """Answers every prompt by how often it was asked, and says how many it was given at once."""

    def __init__(self, base, text="an answer", batch=2):
        self.tokenizer, self.text, self.given = Tokenizer.open(base), text, []
        self.settings = SimpleNamespace(batch=batch)

    def check(self, prompt, place):
        assert prompt and place

    def answers(self, prompts, likeliest, images):
        self.given.append(len(prompts))
        assert likeliest == 0
        return [Answer(f"{self.text} {len(prompt)}", 3, -1.5, True) for prompt in prompts]


def evaluate(generator, rows, where, about=None):
    return held_out.evaluate(generator, rows, None, (EXACT,), where, Quiet(), about)


RECORDS = [{"prefix": f"row {n}:", "suffix": f" an answer {n}\u2028\x85é"} for n in range(7)]

MESSAGES = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "ho"},
    {"role": "user", "content": "why?"},
    {"role": "assistant", "content": "so"},
]


@pytest.mark.parametrize(
    "record, data, text, references",
    [
        ({"prefix": "a sea:", "suffix": "  blue "}, {}, "a sea:", ("blue",)),
        ({"a": "sea", "b": "x"}, {"prefix": "<{a}>", "suffix": "{b}!"}, "<sea>", ("x!",)),
        ({"question": "why?", "answers": ["b", "a", "b"]}, {"task": "vqa"},
         "answer en why?\n", ("b", "a", "b")),
        ({"q": "why?", "answer": "so"}, {"task": "vqa", "columns": {"question": "q"}},
         "answer en why?\n", ("so",)),
        ({"messages": MESSAGES}, {"messages": "messages"},
         "<bos><start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\nho<end_of_turn>\n"
         "<start_of_turn>user\nwhy?<end_of_turn>\n<start_of_turn>model\n", ("so",)),
    ],
)  # fmt: skip
def test_rows_as_they_are_asked(record, data, text, references, eval_rows, base, tmp_path):
    (found,) = eval_rows(tmp_path, [record], data=data)
    shown = Tokenizer.open(base).decode(found.prompt, special=True)
    assert shown.removeprefix("<bos>") == text.removeprefix("<bos>")
    assert found.prompt[0] == 2 and found.prompt.count(2) == 1  # BOS
    assert found.references == references
    assert (found.number, found.place) == (0, f"{tmp_path}/rows.jsonl:1")
    assert found.record.items() >= record.items()


LONG = {"prefix": "x " * 90, "suffix": "y"}
ODD = {"prefix": "x"}


def test_rows_that_a_survey_leaves_out_are_not_asked(eval_rows, tmp_path):
    records = [RECORDS[0], LONG, RECORDS[1], ODD]
    skip = {"too_long": "skip", "bad_rows": "skip"}
    assert [each.number for each in eval_rows(tmp_path, records, data=skip)] == [0, 2]
    kept = eval_rows(tmp_path, records[:3], data={"too_long": "skip"})
    assert [each.number for each in kept] == [0, 2]
    with pytest.raises(TooLong, match=r"rows.jsonl:2: the row has \d+ tokens"):
        eval_rows(tmp_path, records, data={"bad_rows": "skip"})
    with pytest.raises(ValueError, match=r"rows.jsonl:4: no column 'suffix'"):
        eval_rows(tmp_path, records, data={"too_long": "skip"})
    silent = {"prefix": "a", "suffix": ""}
    assert [each.number for each in eval_rows(tmp_path, [silent, RECORDS[0]], data=skip)] == [1]
    with pytest.raises(NothingScored):
        eval_rows(tmp_path, [silent], data={"too_long": "skip"})
    with pytest.raises(ValueError, match="no held-out rows to answer"):
        eval_rows(tmp_path, [ODD], data=skip)


def test_what_is_written(eval_rows, make, base, tmp_path):
    rows = eval_rows(tmp_path, RECORDS)
    generator = Told(base)
    figures, answered = evaluate(generator, rows, tmp_path / "e")
    written = [json.loads(line) for line in (tmp_path / "e/predictions.jsonl").open()]
    assert [line["row"] for line in written] == list(range(7))
    assert [line["prompt"] for line in written] == [each["prefix"] for each in RECORDS]
    assert [line["references"] for line in written] == [
        [each["suffix"].strip()] for each in RECORDS
    ]
    told = [f"an answer {len(each.prompt)}" for each in rows]
    assert [line["answer"] for line in written] == told == [row.answer for row in answered]
    assert all(line["scores"] == {"exact": 0.0} for line in written)
    assert written[0].keys() >= {"place", "tokens", "log_probability", "ended"}
    content = json.loads((tmp_path / "e/metrics.json").read_text())
    assert content == {"rows": 7, "metrics": {"exact": {"value": 0, "low": 0, "high": 0}}}
    assert figures["exact"].value == 0 and not (tmp_path / "e" / held_out.PARTIAL).exists()


@pytest.mark.parametrize("batch, given", [(2, [4, 3]), (3, [3, 3, 1]), (64, [7])])
def test_rows_are_answered_a_few_whole_batches_at_a_time(
    batch, given, eval_rows, make, base, tmp_path, monkeypatch
):
    monkeypatch.setattr(held_out, "CHUNK", 5)
    generator = Told(base, batch=batch)
    evaluate(generator, eval_rows(tmp_path, RECORDS), tmp_path / "e")
    assert generator.given == given


@pytest.mark.parametrize("left", [0.0, 0.3, 0.5, 0.64, 0.9, 1.0])
def test_an_interrupted_evaluation_goes_on(left, eval_rows, make, base, tmp_path, monkeypatch):
    monkeypatch.setattr(held_out, "CHUNK", 2)
    rows = eval_rows(tmp_path, RECORDS)

    def answered(generator, name):
        return evaluate(generator, rows, tmp_path / name, ABOUT)

    def contents(name):
        return {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()}

    answered(Told(base, "é\u2028 \x85 "), "whole")
    answered(Told(base, "é\u2028 \x85 "), "cut")
    text = (tmp_path / "cut/predictions.jsonl").read_bytes()
    (tmp_path / "cut/predictions.jsonl").unlink()
    (tmp_path / "cut/metrics.json").unlink()
    torn = text[: int(len(text) * left)]
    (tmp_path / "cut" / held_out.PARTIAL).write_bytes(torn)
    generator = Told(base, "é\u2028 \x85 ")
    answered(generator, "cut")
    assert contents("cut") == contents("whole")
    whole = torn.count(b"\n") // 2  # chunks that are there; the last is of one row
    assert sum(generator.given) == (0 if left == 1 else 7 - 2 * whole)
    generator.given.clear()
    answered(generator, "cut")
    assert contents("cut") == contents("whole") and not generator.given


class Fails(Told):
    """Answers once, and no more."""

    def answers(self, prompts, likeliest, images):
        if self.given:
            raise RuntimeError("the machine is gone")
        return super().answers(prompts, likeliest, images)


def test_one_interrupted_again_and_again_goes_on(eval_rows, make, base, tmp_path, monkeypatch):
    monkeypatch.setattr(held_out, "CHUNK", 2)
    rows, where = eval_rows(tmp_path, RECORDS), tmp_path / "e"
    for count in range(3):
        with pytest.raises(RuntimeError, match="the machine is gone"):
            evaluate(Fails(base), rows, where, ABOUT)
        partial = where / held_out.PARTIAL
        assert partial.read_bytes().count(b"\n") == 2 * (count + 1)
        partial.write_bytes(partial.read_bytes() + b'{"row": 6, "ans')
    last = Told(base)
    evaluate(last, rows, where, ABOUT)
    assert last.given == [1]


def test_a_character_torn_in_two_is_answered_again(eval_rows, make, base, tmp_path):
    rows = eval_rows(tmp_path, RECORDS[:2])
    torn = '{"row": 0, "answer": "é'.encode()[:-1]
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / held_out.PARTIAL).write_bytes(torn)
    _, predictions = evaluate(Told(base), rows, tmp_path / "e", ABOUT)
    assert len(predictions) == 2


def test_answers_of_something_else_are_not_gone_on_with(eval_rows, make, base, tmp_path):
    rows, where = eval_rows(tmp_path, RECORDS), tmp_path / "e"
    evaluate(Told(base), rows, where, ABOUT)
    before = (where / "predictions.jsonl").read_bytes()
    with pytest.raises(
        ValueError, match="e contains answers of another model or other settings; remove"
    ):
        evaluate(Told(base), rows, where, {"seed": 1})
    assert (where / "predictions.jsonl").read_bytes() == before
    generator = Told(base, "anew")  # in training nothing is said of what they depend on
    evaluate(generator, rows, where)
    assert generator.given == [7] and b"anew" in (where / "predictions.jsonl").read_bytes()


def test_digests_tell_apart():
    assert held_out.digest({"a": (1, 2)}) == held_out.digest({"a": [1, 2]})
    assert held_out.digest({"a": 1}) != held_out.digest({"a": 2})


def test_a_metric_that_is_none_is_refused_before_training(make, tmp_path):
    config = make(checkpoint={"metric": "bleu"}, eval={"answers": 2})
    with pytest.raises(ValueError, match=r"checkpoint.metric 'bleu': expected one of exact"):
        run.fit(config, tmp_path, progress=Quiet())
    config = make(eval={"answers": 2, "holdout": 0})
    with pytest.raises(ValueError, match=r"eval.answers: no held-out rows to answer; set eval"):
        run.fit(config, tmp_path / "other", progress=Quiet())
    assert not list(tmp_path.rglob("metrics.jsonl"))


@pytest.mark.slow
@pytest.mark.parametrize("higher, best", [(True, 2), (False, 3)])
def test_a_run_keeps_what_does_best_by_its_metric(higher, best, make, tmp_path, monkeypatch):
    """The losses fall and fall, and the metric does otherwise."""
    losses, figures = iter([5.0, 4.0, 3.0, 2.0, 1.0]), iter([0.1, 0.3, 0.9, 0.2, 0.5])
    made_up = SimpleNamespace(name="made_up", higher=higher)
    monkeypatch.setattr(Assembly, "metrics", (made_up,))
    monkeypatch.setattr(Run, "_evaluate", lambda *_: {"loss": next(losses)})
    asked = []

    def evaluated(generator, rows, task, metrics, where, progress, **_):
        asked.append((where.name, len(rows)))
        value = next(figures)
        return {"made_up": Figure(value, value, value)}, []

    monkeypatch.setattr(held_out, "evaluate", evaluated)
    config = make(checkpoint={"metric": "made_up", "keep": 1}, eval={"answers": 5})
    summary = run.fit(config, tmp_path, progress=Quiet())
    assert asked == [(f"step-{n:06}", 5) for n in range(5)]
    answers = lines(tmp_path, "answers")
    assert [line["made_up"] for line in answers] == [0.1, 0.3, 0.9, 0.2, 0.5]
    assert (summary["eval_step"], summary["eval_loss"]) == (best, 5.0 - best)
    kept = Checkpoints(tmp_path / "checkpoints")
    assert kept.steps == [best, 4]
    chosen, last = (kept.arrays(step)[0]["trainable/lora/layers/attn/q/w/b"] for step in (best, 4))
    kept.close()
    exported = (tmp_path / "export/adapter/adapter_model.safetensors").read_bytes()
    assert chosen[0].T.copy().tobytes() in exported
    assert last[0].T.copy().tobytes() not in exported


@pytest.mark.parametrize(
    "name, content, problem",
    [
        ("about.json", "[1]", r"about\.json is not valid .* found a list\); repair or remove it"),
        ("about.json", "{", r"about\.json is not valid JSON"),
        (
            "predictions.jsonl",
            "[1]\n",
            r"jsonl:1 is no prediction \(expected an object",
        ),
        ("predictions.jsonl", '{"row": "a"}\n', r"jsonl:1 is no prediction \(it lacks 'place'"),
        ("predictions.partial.jsonl", "garbage\n", r"jsonl:1 is no prediction \(not valid JSON"),
    ],
)
def test_files_that_no_evaluation_has_written(name, content, problem, eval_rows, base, tmp_path):
    where = tmp_path / "e"
    where.mkdir()
    (where / name).write_text(content)
    with pytest.raises(ValueError, match=problem):
        evaluate(Told(base), eval_rows(tmp_path, RECORDS), where, ABOUT)
    assert (where / name).read_text() == content
