"""Files of a tokenizer, changed in bytes and in nodes, and chat templates."""

import json
import shutil

from hypothesis import strategies as st

from tests.data import made
from tests.hostile.explore import Probe
from tests.hostile.outcomes import Silent
from tests.hostile.strategies import apply, edited, edits, file_edits, texts
from tests.hostile.world import TOKENIZERS, World

TALKS = (
    [{"role": "user", "content": "two?"}, {"role": "assistant", "content": "Four."}],
    [{"role": "system", "content": ""}, {"role": "user", "content": "<eos>"}],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "a\ud800"}],
)
SOUND = ("GEMMA_CHAT", "LLAMA_CHAT", "QWEN_CHAT", "PHI_CHAT", "ZEPHYR_CHAT", "GENERATION_CHAT")
EXTRA = (
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    "chat_template.jinja",
)
# Pieces of templates: bombs, loops, forbidden attributes, and what a template is made of.
PIECES = [
    "{{ 'a' * 10**10 }}",
    "{{ 'a' * 99999999 }}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% for i in range(10**9) %}x{% endfor %}",
    "{{ range(10**8) | list | length }}",
    "{{ 10 ** 10 ** 8 }}",
    "{{ '%1000000000s' % 'a' }}",
    "{{ '{:>1000000000}'.format('a') }}",
    "{{ ('a' * 100000) | center(10**9) }}",
    "{% set n = namespace(x='a') %}{% for i in range(40) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{{ messages.__class__.__mro__ }}",
    "{{ ''.__class__ }}",
    "{{ cycler.__init__.__globals__.os.system('true') }}",
    "{{ raise_exception('no') }}",
    "{{ strftime_now('%d') }}",
    "{{ strftime_now('%' * 100000) }}",
    "{{ undefined.attribute }}",
    "{{ 1 / 0 }}",
    "{% include 'x' %}",
    "{% import 'x' as y %}",
    "{{ bos_token }}",
    "{{ eos_token }}",
    "{{ tools | tojson }}",
    "{{ messages | tojson(indent=10**9) }}",
    "{% for m in messages %}{{ m.role + ': ' + m.content }}<eos>{% endfor %}",
    "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}<eos>{% endfor %}",
    "{% if add_generation_prompt %}assistant: {% endif %}",
    "{% generation %}",
    "{%",
    "{{",
    "{# ",
    "\x1b[31m",
    "{{ 'a' | wordwrap(1) * 10**9 }}",
    "{{ lipsum(n=10**7) }}",
    "{{ messages | batch(10**9) | list }}",
    "{{ 'a' | indent(10**9) }}",
    "{{ 'aaaa' | replace('a', 'a' * 10**5) | replace('a', 'a' * 10**5) }}",
    "{{ [0] * 10**9 }}",
]


def probes(world: World) -> list[Probe]:
    """Returns the classes of tokenizer files and of templates."""
    files = [
        (kind, path.name) for kind in TOKENIZERS for path in sorted(world.tokenizer(kind).iterdir())
    ]
    changed = st.sampled_from(files).flatmap(
        lambda each: st.tuples(
            st.just(each), file_edits((world.tokenizer(each[0]) / each[1]).read_bytes())
        )
    )
    small = [each for each in files if each[1].endswith("config.json")]
    settings = st.sampled_from(small).flatmap(
        lambda each: st.tuples(
            st.just(each), file_edits((world.tokenizer(each[0]) / each[1]).read_bytes())
        )
    )
    extra = st.tuples(
        st.tuples(st.sampled_from(TOKENIZERS), st.sampled_from(EXTRA)), file_edits(b'{"a": "b"}')
    )
    whole = st.sampled_from([getattr(made, name) for name in SOUND])
    piece = st.sampled_from(PIECES) | texts
    template = st.one_of(
        st.lists(piece, min_size=1, max_size=4).map("".join),
        st.tuples(whole, st.floats(0, 1), piece | st.just("")).map(inserted),
        st.tuples(whole, edits).map(
            lambda both: edited(both[0].encode(), both[1]).decode("utf-8", "replace")
        ),
    )
    talks = st.sampled_from(range(len(TALKS)))
    return [
        Probe("tokenizers: edited", 2_000, changed, of_files(world), chunk=60),
        Probe("tokenizers: settings", 1_500, settings, of_files(world), chunk=60),
        Probe("tokenizers: added files", 500, extra, of_files(world), chunk=60),
        Probe(
            "templates: conversations",
            1_500,
            st.tuples(template, talks),
            of_template(world),
            chunk=40,
        ),
    ]


def of_files(world: World):
    def check(value):
        from jaxtune.data.tokenizer import Tokenizer

        (kind, name), change = value
        with world.scratch() as place:
            folder = place / "tokenizer"
            shutil.copytree(world.tokenizer(kind), folder)
            before = (folder / name).read_bytes() if (folder / name).exists() else b'{"a": "b"}'
            (folder / name).write_bytes(apply(before, change))
            tokenizer = Tokenizer.open(folder, today="2026-11-05")
            refused_if_corrupt(folder / name)
            for text in ("a calm sea <eos>\n\n", "", "price $12.50 é😀", "x" * 300):
                ids = tokenizer.encode(text)
                tokenizer.decode(ids)
                if any(not 0 <= each < len(tokenizer) for each in ids):
                    raise Silent("ids outside the vocabulary")
            if tokenizer.template:
                tokenizer.template.conversation(TALKS[0], "all", {})

    return check


def refused_if_corrupt(file) -> None:
    """Raises `Silent` if a settings file, which was just accepted, is no JSON object."""
    if file.suffix != ".json":
        return
    try:
        found = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        raise Silent(f"corrupt and passed over: {file.name}") from None
    if not isinstance(found, dict):
        raise Silent(f"no JSON object and passed over: {file.name}")


def of_template(world: World):
    def check(value):
        from jaxtune.data.tokenizer import Tokenizer

        text, number = value
        tokenizer = Tokenizer.open(world.tokenizer("gemma"), template=text, today="2026-11-05")
        if tokenizer.template is None:
            return
        written, regions = tokenizer.template.conversation(TALKS[number], "all", {})
        if any(not 0 <= begin <= end <= len(written) for begin, end in regions):
            raise Silent("regions outside the text")
        tokenizer.template.request(TALKS[number][:1], {})

    return check


def inserted(value) -> str:
    """Puts a piece somewhere into a sound template."""
    template, place, piece = value
    at = int(place * len(template))
    return template[:at] + piece + template[at:]
