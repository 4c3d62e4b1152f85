"""Word tokenisers, one for each family of metrics."""

import re

# Machine translation's (mteval-v13a): ASCII punctuation is split off, except apostrophes, hyphens
# inside words, and periods and commas inside numbers. The order matters. A match consumes the
# neighbouring character, so in a run of periods the last one may stay joined to a digit after it.
MTEVAL = [
    (re.compile(r"([!-&(-+/:-@\[-`{-~])"), r" \1 "),
    (re.compile(r"([^0-9])([.,])"), r"\1 \2 "),
    (re.compile(r"([.,])([^0-9])"), r" \1 \2"),
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),
]
WRITTEN = {"<skipped>": "", "-\n": "", "\n": " "}
ENTITIES = {"&quot;": '"', "&amp;": "&", "&lt;": "<", "&gt;": ">"}  # replaced in this order

# Captioning's: close to Penn Treebank tokens without the punctuation.
CLITIC = re.compile(r"(?<=\w)(n't|'(?:s|m|d|re|ve|ll))(?!\w)")
JOINED = re.compile(r"\b(can|gon|got|wan|gim|lem)(not|na|ta|me)\b")
CAPTION = re.compile(
    r"n't\b|'(?:s|m|d|re|ve|ll)\b|\w+(?:(?:[-./']|(?<=[0-9])[,:](?=[0-9]))\w+)*|[$%&#@/+*=]"
)


def mteval(text: str) -> list[str]:
    """Returns the words of a text as sacreBLEU's tokeniser 13a splits them."""
    for each, instead in WRITTEN.items():
        text = text.replace(each, instead)
    for each, instead in ENTITIES.items():
        text = text.replace(each, instead)
    text = f" {text} "
    for pattern, instead in MTEVAL:
        text = pattern.sub(instead, text)
    return text.split()


def caption(text: str) -> list[str]:
    """Returns lowercase words without punctuation; clitics are words (`do n't`, `dog 's`)."""
    text = text.lower().replace("\u2019", "'")
    return CAPTION.findall(JOINED.sub(r"\1 \2", CLITIC.sub(r" \1", text)))
