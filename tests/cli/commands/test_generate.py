"""`launch.py generate`: prompts answered at the terminal, and what ends in one message."""

import io
import json
import sys
from pathlib import Path

import jax
import pytest

import jaxtune
import launch
from tests import tiny

NEW = {"max_new_tokens": 8}
SEVERAL = {"prefix": "{name} of {size}:", "suffix": "{price}"}


def write_adapter(base: Path, directory: Path) -> Path:
    """An adapter that changes what the base says."""
    _, variables = jaxtune.load(base)
    variables = jaxtune.add_lora(variables, rank=2, alpha=8, key=jax.random.key(0))
    chance = jax.random.key(1)
    moved = jax.tree.map(
        lambda leaf: leaf + 0.2 * jax.random.normal(chance, leaf.shape), variables["lora"]
    )
    jaxtune.save_adapter(variables | {"lora": moved}, directory, base)
    return directory


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory):
    return write_adapter(base, tmp_path_factory.mktemp("adapter") / "adapter")


@pytest.fixture(scope="module")
def wider(tmp_path_factory):
    """An adapter of a wider base."""
    base = tiny.write_base(tmp_path_factory.mktemp("wide"), hidden_size=48)
    return write_adapter(base, tmp_path_factory.mktemp("wider") / "adapter")


@pytest.fixture
def ask(config, capsys):
    """`ask("--prompt", "a")` is what is printed, and what answers.json holds if there is one."""

    def ask(*options, **changes):
        command = ["generate", "--config", config(generate=NEW, **changes), *options]
        assert launch.main([str(each) for each in command]) == 0
        file = Path("runs/x/answers.json")
        return capsys.readouterr(), json.loads(file.read_text()) if file.is_file() else None

    return ask


@pytest.fixture
def stdin(monkeypatch):
    """`stdin(text)` is what will have been typed."""
    return lambda text: monkeypatch.setattr(sys, "stdin", io.StringIO(text))


@pytest.mark.slow
def test_prompts_of_each_kind_are_answered_alike(ask, adapter, stdin):
    one, kept = ask("--adapter", adapter, "--prompt", "a sea")
    (first,) = kept
    assert first["prompt"] == "a sea" and first["answer"].strip()
    assert one.out == f"{first['answer']}\n"
    assert one.err.endswith("answers written to runs/x/answers.json\n")
    Path("prompts.txt").write_text('a sea\n\n{"prefix": "moss"}\n', encoding="utf-8-sig")
    several, kept = ask("--adapter", adapter, "--file", "prompts.txt")
    assert [each["prompt"] for each in kept] == ["a sea", '{"prefix": "moss"}']
    assert kept[0] == first and kept[1]["answer"] != first["answer"]
    assert several.out == "".join(f"> {each['prompt']}\n{each['answer']}\n\n" for each in kept)
    Path("runs/x/answers.json").unlink()
    stdin('a sea\n\n{"prefix": "moss"}')
    typed, none = ask("--adapter", adapter)
    assert typed.out == "".join(f"{each['answer']}\n" for each in kept)
    assert typed.err == "" and none is None


@pytest.mark.slow
def test_who_answers(ask, adapter, base):
    said = ("--prompt", "a sea")
    (plain,) = ask("--base", *said)[1]
    (tuned,) = ask("--adapter", adapter, *said)[1]
    assert plain["answer"] != tuned["answer"]
    Path("runs/x/export").mkdir()
    Path("runs/x/export/adapter").symlink_to(adapter)
    assert ask(*said)[1] == [tuned]
    model, variables = jaxtune.load(base)
    variables = jaxtune.merge(jaxtune.load_adapter(model, variables, adapter))
    jaxtune.save_merged(model, variables, "merged")
    assert ask("--adapter", "merged", *said)[1] == [tuned]


@pytest.mark.parametrize(
    "options, changes, problem",
    [
        (["--prompt", ""], {}, "--prompt is empty: expected a text to answer"),
        (["--prompt", '{"prefix": 1'], {}, "--prompt begins like JSON but is not valid JSON: "),
        (["--prompt", '{"prefx": "a"}'], {}, "--prompt: no column 'prefix'; did you mean"),
        (["--prompt", "a pen"], {"data": SEVERAL},
         'type a row as JSON (in a shell, within single quotes): {"name": "…", "size": "…"}'),
        (["--file", "empty.txt"], {}, "empty.txt contains no prompts: expected one per line"),
        (["--file", "bytes.txt"], {}, "bytes.txt is not UTF-8 text: "),
        (["--file", "prompts.txt"], {}, "prompts.txt:3 begins like JSON but is not valid JSON: "),
        (["--file", "nowhere.txt"], {}, "No such file or directory: 'nowhere.txt'"),
        (["--prompt", "a"], {}, "runs/x/export contains no adapter or merged model: train first"),
        (["--prompt", "a", "--adapter", "./nowhere"], {}, "./nowhere"),
        (["--prompt", "a", "--file", "b"], {}, "not allowed with argument --prompt"),
    ],
)  # fmt: skip
def test_what_cannot_be_answered(options, changes, problem, config, failure):
    Path("empty.txt").write_text("\n \n")
    Path("bytes.txt").write_bytes(b"\xff\xfe")
    Path("prompts.txt").write_text("a sea\n\n{sea}\n")
    message = failure("generate", "--config", config(**changes), *options)
    assert problem in message and message.count("\n") == 1
    assert not Path("runs/x/answers.json").exists()


def test_a_prompt_longer_than_the_context_is_told_with_both_numbers(config, failure):
    Path("prompts.txt").write_text("a\n" + "word " * 200 + "\n")
    message = failure("generate", "--config", config(), "--base", "--file", "prompts.txt")
    assert "prompts.txt:2: the prompt has " in message
    assert "with 64 new ones exceed the model's context length of 256" in message
    assert not Path("runs/x/answers.json").exists()


@pytest.mark.slow
def test_an_adapter_of_another_base(config, failure, wider):
    options = ("--adapter", wider, "--prompt", "a")
    message = failure("generate", "--config", config(), *options)
    assert f"{wider} (its base: " in message and "does not fit the model from" in message
    assert "q_proj" in message and "48" in message and "32" in message


@pytest.mark.slow
def test_a_merged_model_that_is_no_number(config, failure, base):
    model, variables = jaxtune.load(base)
    broken = jax.tree.map(lambda leaf: leaf.at[..., 0].set(jax.numpy.nan), variables)
    jaxtune.save_merged(model, broken, "broken")
    options = ("--adapter", "broken", "--prompt", "a")
    message = failure("generate", "--config", config(), *options)
    assert "the logits of" in message and "broken" in message and "not finite" in message
    assert message.count("\n") == 1 and not Path("runs/x/answers.json").exists()


@pytest.mark.parametrize(
    "command, options",
    [
        ("generate", ["--prompt TEXT", "--file FILE", "--base", "--adapter DIR"]),
        ("eval", ["--base", "--both", "--adapter DIR"]),
        ("train", ["--accept-changes", "--distributed"]),
        ("preview", ["--rows N"]),
    ],
)
def test_usage_tells_all_options(command, options, capsys):
    with pytest.raises(SystemExit):
        launch.main([command, "--help"])
    usage = capsys.readouterr().out.partition("\n\n")[0]
    assert all(each in usage for each in ["--config FILE", "--workdir DIR", *options])


def test_what_is_mistyped_on_a_terminal_ends_nothing(capsys, monkeypatch):
    from jaxtune.cli.commands import generate

    monkeypatch.setattr(sys, "stdin", io.StringIO())
    said = []

    def answer(text):
        said.append(text)
        if text == "{":
            raise ValueError("the prompt is none")

    monkeypatch.setattr(generate, "typed", lambda: iter(["a", "{", "b"]))
    with pytest.raises(ValueError, match="the prompt is none"):
        generate.conversed(answer)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    generate.conversed(answer)
    assert said == ["a", "{", "a", "{", "b"]
    assert capsys.readouterr().err == "error: the prompt is none\n"
