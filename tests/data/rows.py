"""A record, its template and its place, and the encoder that tests of examples give them to."""

from jaxtune.data.examples import RowEncoder, Template

PROMPT = Template("Describe: {description}\nColors:", " {colors}")
RECORD = {"description": "a calm sea", "colors": ["#aabbcc", "#123456"]}
PLACE = "a.jsonl:7"


def make(tokenizer, form=PROMPT, max_length=500, **options):
    return RowEncoder(tokenizer, form, max_length, **options)
