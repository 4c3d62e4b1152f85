"""Text into words, as each family of metrics has them."""

import re

# Machine translation's (mteval-v13a): ASCII punctuation stands apart, but for apostrophes, hyphens
# inside words, and periods and commas inside numbers. In this order; a match takes its neighbour
# with it, so that of many periods in a row the last before a digit may stay.
MTEVAL = [
    (re.compile(r"([!-&(-+/:-@\[-`{-~])"), r" \1 "),
    (re.compile(r"([^0-9])([.,])"), r"\1 \2 "),
    (re.compile(r"([.,])([^0-9])"), r" \1 \2"),
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),
]
WRITTEN = {"<skipped>": "", "-\n": "", "\n": " "}
ENTITIES = {"&quot;": '"', "&amp;": "&", "&lt;": "<", "&gt;": ">"}  # in this order

# Captions': near to the Penn treebank's words without its punctuation.
CLITIC = re.compile(r"(?<=\w)(n't|'(?:s|m|d|re|ve|ll))(?!\w)")
JOINED = re.compile(r"\b(can|gon|got|wan|gim|lem)(not|na|ta|me)\b")
CAPTION = re.compile(
    r"n't\b|'(?:s|m|d|re|ve|ll)\b|\w+(?:(?:[-./']|(?<=[0-9])[,:](?=[0-9]))\w+)*|[$%&#@/+*=]"
)


def mteval(text: str) -> list[str]:
    """Words as sacreBLEU's tokeniser 13a has them."""
    for each, instead in WRITTEN.items():
        text = text.replace(each, instead)
    for each, instead in ENTITIES.items():
        text = text.replace(each, instead)
    text = f" {text} "
    for pattern, instead in MTEVAL:
        text = pattern.sub(instead, text)
    return text.split()


def caption(text: str) -> list[str]:
    """Words in lower case without punctuation; clitics (`do n't`, `dog 's`) stand apart."""
    text = text.lower().replace("\u2019", "'")
    return CAPTION.findall(JOINED.sub(r"\1 \2", CLITIC.sub(r" \1", text)))
