"""Compiles chat templates with jinja, as transformers does.

Templates are untrusted code, so they run in jinja's sandbox, with bounds on their work.
"""

import datetime
import json
import re
from collections.abc import Callable
from typing import Any

from jaxtune.data.errors import DataError
from jaxtune.data.meter import metered
from jaxtune.display.errors import UserError

LONGEST = 2**18  # characters of a template; published ones have up to 30,000
BEGIN, END = "\ufdd2", "\ufdd3"  # put around the output of a {% generation %} block
GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


def compiled(text: str, today: str | None = None) -> Callable[..., str]:
    """Compiles a template into a function of its variables.

    `today`, such as "2026-11-05", is the date that the template sees; None takes the current date.
    """
    if len(text) > LONGEST:
        raise DataError(f"chat template: it has {len(text):,} characters; expected {LONGEST:,}")
    from jinja2 import TemplateSyntaxError

    from jaxtune.data.sandbox import limited

    environment = _environment(today)
    try:
        with metered(text):
            template = environment.from_string(text)
    except TemplateSyntaxError as error:
        raise DataError(f"chat template, line {error.lineno}: {error.message}") from None
    except Exception as error:  # such as RecursionError, SyntaxError and MemoryError
        raise DataError(f"chat template: it cannot be compiled: {error}") from None

    def render(**variables: Any) -> str:
        with metered(variables) as most:
            return limited(template.generate(variables), most)

    return render


def _environment(today: str | None) -> Any:
    """Returns jinja's environment for chat templates, as transformers sets it up, and bounded."""
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols

    from jaxtune.data.sandbox import Sandbox

    class Generation(Extension):
        """Jinja extension for `{% generation %}`, which puts marks around the assistant's text."""

        tags = frozenset({"generation"})

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            call = self.call_method("_mark")
            return nodes.CallBlock(call, [], [], body).set_lineno(line)

        def _mark(self, caller):
            return BEGIN + caller() + END

    environment = Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _json
    environment.guard_filters()
    environment.globals |= {"raise_exception": _refuse, "strftime_now": _clock(today)}
    return environment


def _json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Writes plain JSON; jinja's own filter escapes characters for HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _refuse(message: str) -> None:
    raise UserError(message)


def _clock(today: str | None) -> Callable[[str], str]:
    fixed = None if today is None else datetime.datetime.fromisoformat(today)
    return lambda format: (fixed or datetime.datetime.now()).strftime(format)
