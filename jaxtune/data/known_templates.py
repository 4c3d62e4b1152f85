"""Chat templates by name, for tokenizers that have none: `data.chat_template`.

Each writes conversations as the published templates of its models do. Values are written exactly as
they are in a row unless the published template trims them.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from jaxtune.data.errors import DataError
from jaxtune.data.side_files import Unusable, regular_bytes
from jaxtune.files.fetched import local


@dataclass(frozen=True)
class Known:
    """A template, and the special tokens that a tokenizer must have for it."""

    text: str
    tokens: tuple[str, ...] = ()  # besides EOS


# Qwen, Yi and many others.
CHATML = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

# Gemma 3; the same for Gemma and Gemma 2, which refuse a system message.
GEMMA = """\
{{- bos_token }}
{%- set lead = '' %}
{%- set turns = messages %}
{%- if messages[0].role == 'system' %}
    {%- set lead = messages[0].content + '\\n\\n' %}
    {%- set turns = messages[1:] %}
{%- endif %}
{%- for message in turns %}
    {%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('user and assistant must take turns, and the user begins') }}
    {%- endif %}
    {{- '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\\n' }}
    {{- (lead if loop.first else '') + (message.content | trim) + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<start_of_turn>model\\n' }}
{%- endif %}
"""

# Llama 2 chat: the system message is part of the first question.
LLAMA2 = """\
{%- set lead = '' %}
{%- set turns = messages %}
{%- if messages[0].role == 'system' %}
    {%- set lead = '<<SYS>>\\n' + messages[0].content + '\\n<</SYS>>\\n\\n' %}
    {%- set turns = messages[1:] %}
{%- endif %}
{%- for message in turns %}
    {%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('user and assistant must take turns, and the user begins') }}
    {%- endif %}
    {%- if message.role == 'user' %}
        {%- set asked = (lead if loop.first else '') + message.content %}
        {{- bos_token + '[INST] ' + (asked | trim) + ' [/INST]' }}
    {%- else %}
        {{- ' ' + (message.content | trim) + ' ' + eos_token }}
    {%- endif %}
{%- endfor %}
"""

# Llama 3 Instruct.
LLAMA3 = """\
{{- bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' }}
    {{- (message.content | trim) + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

# Phi-3 and Phi-3.5.
PHI3 = """\
{%- for message in messages %}
    {{- '<|' + message.role + '|>\\n' + message.content + '<|end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>\\n' }}
{%- else %}
    {{- eos_token }}
{%- endif %}
"""

# Zephyr: the names of the roles are text.
ZEPHYR = """\
{%- for message in messages %}
    {{- '<|' + message.role + '|>\\n' + message.content + eos_token + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>\\n' }}
{%- endif %}
"""

# Alpaca: text alone, for any tokenizer with an end token.
ALPACA = """\
{%- set turns = messages %}
{%- if messages[0].role == 'system' %}
    {{- messages[0].content + '\\n\\n' }}
    {%- set turns = messages[1:] %}
{%- else %}
    {{- 'Below is an instruction that describes a task. ' }}
    {{- 'Write a response that appropriately completes the request.\\n\\n' }}
{%- endif %}
{%- for message in turns %}
    {%- if message.role == 'user' %}
        {{- '### Instruction:\\n' + message.content + '\\n\\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '### Response:\\n' + message.content + eos_token + '\\n\\n' }}
    {%- else %}
        {{- raise_exception('expected the roles system (first), user and assistant') }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '### Response:\\n' }}
{%- endif %}
"""

KNOWN = {
    "alpaca": Known(ALPACA),
    "chatml": Known(CHATML, ("<|im_start|>", "<|im_end|>")),
    "gemma": Known(GEMMA, ("<start_of_turn>", "<end_of_turn>")),
    "llama2": Known(LLAMA2),
    "llama3": Known(LLAMA3, ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")),
    "phi3": Known(PHI3, ("<|user|>", "<|assistant|>", "<|end|>")),
    "zephyr": Known(ZEPHYR),
}
NAMES = ", ".join(KNOWN)
MISSING = (
    f"the tokenizer has no chat template; set data.chat_template to a file with one, or to one of "
    f"{NAMES}"
)


def template_text(chosen: str) -> str:
    """Returns the source of a template: a known name, or a file.

    Raises:
      DataError: If it is neither, or if the file cannot be read.
    """
    if chosen in KNOWN:
        return KNOWN[chosen].text
    file = template_file(chosen)
    if "\0" in chosen or not os.path.lexists(file):
        raise DataError(
            f"data.chat_template {chosen[:80]!r}: no such file, and no known template; expected a "
            f"file, or one of {NAMES}"
        )
    try:
        return regular_bytes(file).decode("utf-8")
    except (OSError, Unusable, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"data.chat_template {chosen!r} cannot be read: {reason}") from None


def template_file(chosen: str) -> Path:
    """Returns the local path of a file with a template."""
    try:
        return local(chosen)
    except FileNotFoundError as error:
        raise DataError(f"data.chat_template {chosen!r}: {error.strerror}") from None


def check_fits(chosen: str, specials: Iterable[str], eos: str | None) -> None:
    """Raises DataError if a tokenizer lacks tokens that a known template writes."""
    if chosen not in KNOWN:
        return
    have = set(specials)
    missing = [token for token in KNOWN[chosen].tokens if token not in have]
    if not missing and eos is not None:
        return
    fitting = [name for name, each in KNOWN.items() if eos and have.issuperset(each.tokens)]
    raise DataError(
        f"data.chat_template {chosen!r} writes {', '.join(missing) or 'an end token (EOS)'}, which "
        "is no special token of this tokenizer; expected "
        f"{', '.join(fitting) or 'a tokenizer with an end token'}, or a file with a template"
    )
