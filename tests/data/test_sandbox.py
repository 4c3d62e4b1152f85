"""Chat templates that ask for too much are stopped soon, and others are not."""

import threading
import time

import pytest

from jaxtune.data import meter
from jaxtune.data.errors import DataError, RowError
from jaxtune.data.examples import Chat
from jaxtune.data.meter import TemplateLimit
from jaxtune.data.templates import compiled
from jaxtune.data.tokenizer import Tokenizer
from tests.data.rows import PLACE, make
from tests.marks import slow_after

WORK = "does too much work"


def twice(step, times=50, start="a = 'aa'"):
    """A template that does a step again and again, each time with what it made before."""
    return f"{{% set {start} %}}" + step * times + "{{ a }}"


BOMBS = {
    "product": ("{{ 'a' * 10**10 }}", WORK),
    "reversed product": ("{{ 10**10 * 'a' }}", WORK),
    "list": ("{{ [1] * 10**10 }}", WORK),
    "power": ("{{ 2 ** (10**6) }}", "computes a number of"),
    "squares": ("{% set x = 9**2000 %}{% set x = x * x %}{{ x * x }}", "computes a number of"),
    "nested loops": (
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        WORK,
    ),
    "filtered loops": (
        "{% for i in range(99999) %}{% for j in range(99999) if 0 %}{% endfor %}{% endfor %}",
        WORK,
    ),
    "letters": (
        "{% for i in 'a' * 10**5 %}{% for j in 'a' * 10**5 %}{% endfor %}{% endfor %}",
        WORK,
    ),
    "concatenation": (twice("{% set a = a ~ a %}"), WORK),
    "addition": (twice("{% set a = a + a %}"), WORK),
    "blocks": (twice("{% set a %}{{ a }}{{ a }}{% endset %}"), WORK),
    "macros": ("{% macro d(x) %}{{ x }}{{ x }}{% endmacro %}" + twice("{% set a = d(a) %}"), WORK),
    "shared lists": (twice("{% set a = [a, a] %}"), WORK),
    "shared tuples": (twice("{% set a = (a, a) %}"), WORK),
    "shared mappings": (twice("{% set a = dict(a=a, b=a) %}"), WORK),
    "shared names": (twice("{% set a = namespace(a=a, b=a) %}"), WORK),
    "slices": (
        "{% set a = 'a' * 10**6 %}{% set n = namespace(l=[]) %}"
        "{% for i in range(9999) %}{% set n.l = n.l + [a[1:]] %}{% endfor %}",
        WORK,
    ),
    "comparisons": (
        "{% set a = 'a' * 10**7 %}{% set b = 'a' * 10**7 %}" + "{% if a == b %}{% endif %}" * 999,
        WORK,
    ),
    "center": ("{{ 'a' | center(10**10) }}", "pads a text by 10,000,000,000 characters"),
    "ljust": ("{{ 'a'.ljust(10**9) }}", "pads a text"),
    "expandtabs": ("{{ ('\t' * 10**6).expandtabs(9999) }}", WORK),
    "indent": ("{{ 'a\nb' | indent(10**9) }}", "pads a text"),
    "tojson": ("{{ [[1]] | tojson(indent=10**9) }}", "pads a text"),
    "slice": ("{{ 'a' | slice(10**9) | list }}", "pads a text"),
    "to_bytes": ("{{ (1).to_bytes(10**9, 'big') }}", "pads a text"),
    "percent": ("{{ '%1000000000d' % 1 }}", "writes a text with the format '%1000000000'"),
    "format filter": ("{{ '%*d' | format(10**9, 1) }}", "writes a text with the format '%*'"),
    "format": ("{{ '{:>1000000000}'.format(1) }}", "writes a text with the format"),
    "nested format": ("{{ '{:>{}}'.format(1, 10**9) }}", "writes a text with the format"),
    "many fields": ("{{ ('{0}' * 10**5).format('a' * 10**5) }}", WORK),
    "replace": ("{{ ('a' * 10**5) | replace('a', 'b' * 10**5) }}", WORK),
    "replace method": ("{{ ('a' * 10**5).replace('a', 'b' * 10**5) }}", WORK),
    "join": ("{{ (['a'] * 10**4) | join('b' * 10**5) }}", WORK),
    "join method": ("{{ ('b' * 10**5).join(['a'] * 10**4) }}", WORK),
    "sum": ("{{ [[1], [2]] | sum(start=[]) }}", "adds lists"),
    "output": ("{% for i in range(99999) %}" + "a" * 99 + "{% endfor %}", "writes more than 4,"),
}


@pytest.mark.parametrize(
    "name", slow_after(len(BOMBS) - 4, sorted(BOMBS, key=lambda name: name.startswith("shared ")))
)
def test_bombs_are_stopped(name):
    template, problem = BOMBS[name]
    render = compiled(template)
    start = time.thread_time()
    with pytest.raises(TemplateLimit) as found:
        render(messages=[])
    assert str(found.value).startswith(f"the chat template was stopped, because it {problem}")
    assert time.thread_time() - start < meter.SECONDS


@pytest.mark.parametrize(
    "template, problem",
    [
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "it cannot be compiled"),
        ("{% for a in [1] %}" * 60 + "{% endfor %}" * 60, "it cannot be compiled: too many"),
        ("a" * 2**19, "it has 524,288 characters"),
    ],
)
def test_templates_that_cannot_be_compiled(template, problem):
    with pytest.raises(DataError, match=f"^chat template: {problem}"):
        compiled(template)


def test_time_is_limited_where_the_count_is_too_low(monkeypatch):
    monkeypatch.setattr(meter, "SECONDS", 0.05)
    monkeypatch.setattr(meter, "BASE", 10**15)
    render = compiled(
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    )
    with pytest.raises(TemplateLimit, match="takes more than 0 seconds for one conversation"):
        render(messages=[])


def test_recursion_without_end_is_an_error_of_the_row(checkpoint):
    template = "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"
    encoder = make(Tokenizer.open(checkpoint("gemma"), template=template), Chat())
    with pytest.raises(RowError, match=r"rejects the conversation: maximum recursion depth"):
        encoder.prompt({"messages": [{"role": "user", "content": "a"}]}, PLACE)


def test_a_limit_stops_the_run_and_not_the_row(checkpoint):
    encoder = make(Tokenizer.open(checkpoint("gemma"), template=BOMBS["product"][0]), Chat())
    with pytest.raises(TemplateLimit) as found:
        encoder.prompt({"messages": [{"role": "user", "content": "a"}]}, PLACE)
    assert not isinstance(found.value, RowError)


def test_threads_count_apart(tokenizer):
    messages = [{"role": "user", "content": "word " * 2000}]
    expected, found = tokenizer("gemma").ask(messages), []

    def ask():
        for _ in range(5):
            found.append(tokenizer("gemma").ask(messages))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 20


@pytest.mark.parametrize("kind", ["gemma", "llama", "qwen", "phi", "generation"])
def test_long_conversations_and_long_texts_are_within_the_limits(tokenizer, kind):
    template = tokenizer(kind).template
    for count, content in ((2000, "word " * 20), (2, "word " * 10**6)):
        messages = [
            {"role": ("user", "assistant")[n % 2], "content": content} for n in range(count)
        ]
        assert len(template.write(messages, {})) > count * len(content) - 2 * count


def test_texts_within_lists_stay_quoted(tokenizer):
    """Python writes a list with escapes for the marks of quoted tokens."""
    ours = tokenizer("gemma")
    render = compiled("{{ m }}|{{ m ~ '' }}|{{ '\\\\ufdd0' }}")
    text = render(m=ours.quote([{"a": "<eos>", "b": "\\"}]))
    ids = ours.encode(text, special=True)
    assert ours.eos not in ids
    whole = str([{"a": "<eos>", "b": "\\"}])
    assert ours.decode(ids) == f"{whole}|{whole}|\\ufdd0"
