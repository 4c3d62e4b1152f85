"""What is typed becomes a prompt, and what comes of it is shown."""

import shutil
import sys
from types import SimpleNamespace

import pytest

from jaxtune.assembly.assemble import Assembly
from jaxtune.assembly.rows import identity
from jaxtune.cli import chat
from jaxtune.config import load as configs
from jaxtune.data.errors import DataError
from jaxtune.decoding import generate
from jaxtune.tasks.palette import shown

TEMPLATE = {"prefix": "{name} costs", "suffix": " {price}"}


@pytest.fixture(scope="module")
def config(base):
    """`config(prefix="…")` has these settings of data."""

    def config(**data):
        values = {"model": {"path": str(base)}, "data": {"source": "x.jsonl", **data}}
        return configs.parse(values | {"generate": {"max_new_tokens": 8}})

    return config


@pytest.fixture(scope="module")
def assembly(config, base):
    """`assembly(prefix="…")` is what such a config describes."""
    return lambda **data: Assembly(config(**data), base, "2026-11-21")


@pytest.fixture(scope="module")
def asked(assembly):
    """`asked(text, prefix="…")` is what the model sees of a text."""

    def asked(text, **data):
        ours = assembly(**data)
        found = chat.typed_prompt(ours, text, "line 3")
        assert (found.text, found.place) == (text, "line 3")
        return ours.tokenizer.decode(found.tokens, special=True)

    return asked


@pytest.mark.parametrize(
    "text, data, seen",
    [
        ("a pen", TEMPLATE, "a pen costs"),
        (" a pen ", TEMPLATE, " a pen  costs"),
        ('{"name": "a pen"}', TEMPLATE, "a pen costs"),
        ('{"name": "a pen", "price": 1, "maker": 2}', TEMPLATE, "a pen costs"),
        ("why?", {"task": "vqa"}, "answer en why?\n"),
        ("why?", {"task": "vqa", "columns": {"question": "q"}}, "answer en why?\n"),
        ('{"q": "why?"}', {"task": "vqa", "columns": {"question": "q"}}, "answer en why?\n"),
        ('{"question": "why?"}', {"task": "vqa"}, "answer en why?\n"),
        ("hi", {"messages": "m"}, "<start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\n"),
        ('{"m": [{"role": "user", "content": "hi"}]}', {"messages": "m"},
         "<start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\n"),
    ],
)  # fmt: skip
def test_what_a_model_sees_of_a_text(text, data, seen, asked):
    assert asked(text, **data) == f"<bos>{seen}"


def test_the_template_of_a_config_replaces_the_tokenizers(asked, assembly, tmp_path):
    seen = asked("hi", messages="m", chat_template="alpaca")
    assert seen.startswith("<bos>Below is an instruction")
    assert seen.endswith("\n\n### Instruction:\nhi\n\n### Response:\n")
    file = tmp_path / "mine.jinja"
    file.write_text("{{ messages[0].content }}!<end_of_turn>")
    chosen = dict(messages="m", chat_template=str(file))
    assert asked("hi", **chosen) == "<bos>hi!<end_of_turn>"
    ours = assembly(**chosen)
    assert ours.tokenizer.chat_template == file.read_text()
    before = identity(ours.config.data, ours.checkpoint, ours.today)
    file.write_text("{{ messages[0].content }}?<end_of_turn>!")
    assert identity(ours.config.data, ours.checkpoint, ours.today) != before
    with pytest.raises(DataError, match=r"data\.chat_template 'llama3' writes <\|start_header_id"):
        asked("hi", messages="m", chat_template="llama3")
    with pytest.raises(ValueError, match=r"data\.chat_template is used only with data\.messages"):
        asked("hi", chat_template="gemma")


def test_the_settings_beside_a_named_tokenizer_belong_to_the_data(assembly, base, tmp_path):
    directory = shutil.copytree(base, tmp_path / "base")
    ours = assembly(tokenizer=str(directory / "tokenizer.model"), **TEMPLATE)
    before = identity(ours.config.data, ours.checkpoint, ours.today)
    (directory / "added_tokens.json").write_text("{}")
    assert identity(ours.config.data, ours.checkpoint, ours.today) != before


@pytest.mark.parametrize(
    "text, data, problem",
    [
        ("  ", {}, r"^line 3 is empty"),
        ('{"name": ', TEMPLATE, r"^line 3 begins like JSON but is not valid JSON: .*column"),
        ("{name} and so on", TEMPLATE, r"^line 3 begins like JSON but is not valid JSON"),
        ('{"nam": "a pen"}', TEMPLATE, r"^line 3: no column 'name'; did you mean 'nam'\?"),
        ("a pen", {"prefix": "{name} {size} ", "suffix": "x"},
         r"^line 3: .*several columns; type a row as JSON .*: {.name.: .…., .size.: .….}$"),
        ("a pen", {"prefix": "Say a word:", "suffix": "{x}"},
         r"^line 3: data.prefix is the same for every row, .*; type \{\} instead"),
        ("a \ud800 pen", TEMPLATE, r"^line 3: column 'name' contains half of a .*U\+D800"),
        ('{"name": "\\udc00"}', TEMPLATE, r"^line 3: column 'name' contains half of a character"),
        ("\udcff", {"messages": "m"}, r"^line 3: column 'm'\[0\]\['content'\] contains half"),
        ("a table", {"task": "totto"}, r"^line 3: .*columns; type a row as JSON .*table"),
    ],
)  # fmt: skip
def test_texts_that_are_no_prompt(text, data, problem, asked):
    with pytest.raises(ValueError, match=problem):
        asked(text, **data)


@pytest.fixture
def answer(assembly, monkeypatch):
    """`answer(tokens, stops=…)` is what is shown of such an answer, and what is kept of it."""

    def answer(text, **data):
        ours = assembly(**data)
        tokens = [ours.tokenizer.encode(each, continues=True)[-1] for each in text]
        monkeypatch.setattr(generate, "stream", lambda *given, **more: iter(tokens))
        model = SimpleNamespace(config=SimpleNamespace(context=100))
        generator = ours.generator(model, None)
        said = []
        prompt = chat.typed_prompt(ours, "a", "line 3")
        return said, chat.answer(generator, ours.task, prompt, said.append)

    return answer


def test_an_answer_is_shown_as_it_comes(answer):
    said, found = answer("blue", **TEMPLATE)
    assert said == ["b", "l", "u", "e", "\n"]
    assert found == {"prompt": "a", "answer": "blue"}


def test_elsewhere_than_on_a_terminal_an_answer_is_as_it_came(answer):
    palette = ' ["#1f2a44", "#e8dcc5", "#000000", "#ffffff"]'
    said, found = answer(palette, task="palette")
    assert "".join(said) == f"{palette}\n" and found["answer"] == palette


@pytest.mark.parametrize("columns, before", [(80, "\r\033[K"), (20, "\n")])
def test_on_a_terminal_what_its_task_shows_stands_instead(columns, before, answer, monkeypatch):
    palette = ' ["#1f2a44", "#e8dcc5", "#000000", "#ffffff"]'
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", str(columns))
    said, found = answer(palette, task="palette")
    assert "".join(said) == f"{palette}{before}{shown(palette, True)}\n"
    assert found["answer"] == palette
    said, _ = answer("blue", **TEMPLATE)
    assert "".join(said) == "blue\n"


def test_a_prompt_longer_than_the_context(answer):
    with pytest.raises(
        ValueError, match=r"^line 3: the prompt has 1\d\d tokens, .* of 100; shorten"
    ):
        answer("blue", prefix="1 2 3 4 5 6 7 8 9 " * 9 + "{name}", suffix="x")


def test_a_conversation_tells_each_prompt_what_came_before(assembly, monkeypatch):
    ours, asked, said = assembly(messages="m"), [], []

    def stream(model, variables, prompt, *given, **more):
        asked.append(ours.tokenizer.decode(prompt, special=True))
        return iter(ours.tokenizer.encode("ho", continues=True))

    monkeypatch.setattr(generate, "stream", stream)
    model = SimpleNamespace(config=SimpleNamespace(context=1000))
    conversation = chat.Conversation(ours, ours.generator(model, None))
    for text in ("hi", "why?", '{"m": [{"role": "user", "content": "x"}]}', "/new", "hi"):
        conversation.reply(text, "the prompt", said.append)
    first, second, row, again = asked
    begin, end = "<start_of_turn>", "<end_of_turn>"
    assert first == again == f"<bos>{begin}user\nhi{end}\n{begin}model\n"
    assert second == f"{first}ho{end}\n{begin}user\nwhy?{end}\n{begin}model\n"
    assert row == f"<bos>{begin}user\nx{end}\n{begin}model\n"
    assert "".join(said).count("ho") == 4 and "new conversation\n" in said


def test_without_messages_every_prompt_stands_alone(assembly, monkeypatch):
    ours, asked = assembly(**TEMPLATE), []

    def stream(model, variables, prompt, *given, **more):
        asked.append(list(prompt))
        return iter(ours.tokenizer.encode("ho", continues=True))

    monkeypatch.setattr(generate, "stream", stream)
    model = SimpleNamespace(config=SimpleNamespace(context=1000))
    conversation = chat.Conversation(ours, ours.generator(model, None))
    for _ in range(2):
        conversation.reply("a pen", "the prompt", lambda text: None)
    assert asked[0] == asked[1]


@pytest.mark.parametrize("terminal", [True, False])
def test_an_answer_cannot_control_the_terminal(terminal, monkeypatch):
    """It is written to a file as it is."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
    parts = ["a\x1b]0;owned\x07", "\x1b[2J", "\n\té"]
    generator = SimpleNamespace(check=lambda *_: None, stream=lambda *_: iter(parts))
    prompt = chat.TypedPrompt("a", "line 3", [1], None)
    said = []
    found = chat.answer(generator, None, prompt, said.append)
    seen = "a\\x1b]0;owned\\x07\\x1b[2J\n\té" if terminal else "".join(parts)
    assert "".join(said) == f"{seen}\n" and found["answer"] == "".join(parts)
    task = SimpleNamespace(shown=lambda answer, colour: f"\033[1m{answer}\033[0m")
    chat.answer(generator, task, prompt, said.append)
    controls = {"\x1b[1m", "\x1b[0m"} if terminal else {"\x1b[2J"}
    assert "\x07" not in "".join(said) or not terminal
    assert all(each in "".join(said) for each in controls)


def test_a_prompt_nested_deeply_is_refused(asked):
    with pytest.raises(
        DataError, match="begins like JSON but is not valid JSON: maximum recursion"
    ):
        asked('{"a":' * 100_000, **TEMPLATE)
