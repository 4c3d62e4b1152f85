"""Templates with columns in braces, such as "Price of {product}: {price:.2f}"."""

import json
import re
import string
from collections.abc import Mapping
from typing import Any

from jaxtune.data.errors import RowError, column
from jaxtune.data.markup import half_character
from jaxtune.data.tokenizer import Tokenizer
from jaxtune.display.errors import UserError

NUMBERS = re.compile("[0-9]+")  # in a format, the width and the precision


def fields(template: str) -> list[tuple[str, str | None, str | None, str | None]]:
    """Splits a template into (text before a field, column, format, conversion)."""
    try:
        found = list(string.Formatter().parse(template))
    except ValueError as error:
        raise UserError(
            f"template {template!r}: {error}; double braces that are meant literally"
        ) from None
    if any(name == "" for _, name, *_ in found):
        raise UserError(f"template {template!r}: found braces without a column name")
    return found


def check_template(template: str) -> None:
    """Raises ValueError for a template that is not valid, or would write too much."""
    if problem := half_character(template):
        raise UserError(f"template {template!r} {problem}")
    for _, name, form, conversion in fields(template):
        shown = f"template {template[:80]!r}, column {name!r}"
        if conversion not in (None, "s", "r", "a"):
            raise UserError(f"{shown}: found !{conversion}, expected !s, !r or !a")
        if "{" in (form or ""):
            raise UserError(f"{shown}: found braces in the format {form!r}; write the number")
        if any(len(digits) > 3 for digits in NUMBERS.findall(form or "")):
            raise UserError(
                f"{shown}: the format {form!r} has a number above 999, which would pad the text to "
                "as many characters; lower it"
            )


def filled(template: str, record: Mapping[str, Any], place: str, tokenizer: Tokenizer) -> str:
    """Returns a template with its fields replaced by the columns of a row."""
    parts = []
    for before, name, form, conversion in fields(template):
        parts.append(before)
        if name is not None:
            value = column(record, name, place)
            value = string.Formatter().convert_field(value, conversion)
            text = _written(value, form or "", name, place)
            parts.append(tokenizer.quote(text, f"column {name!r}"))
    return "".join(parts)


def _written(value: Any, form: str, name: str, place: str) -> str:
    try:
        if isinstance(value, list | tuple | dict | bool) and not form:
            return json.dumps(value, ensure_ascii=False)
        return format(value, form)
    except (TypeError, ValueError) as error:
        raise RowError(place, f"column {name!r}: cannot format {value!r}: {error}") from None
