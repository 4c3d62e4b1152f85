"""Reads messages that others than the chat templates' authors name, as ShareGPT does."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtune.display.errors import UserError

# Names in `from`, and the roles of chat templates that they stand for.
ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
}


def standard(messages: Sequence[Any]) -> list[Any]:
    """Returns messages with `role` and `content`, also if they have `from` and `value`.

    Raises ValueError for a `from` that stands for no role; other messages are left as they are.
    """
    return [
        _renamed(message, number) if foreign(message) else message
        for number, message in enumerate(messages, 1)
    ]


def foreign(message: Any) -> bool:
    """Returns whether a message has `from` and `value` instead of `role` and `content`."""
    return isinstance(message, Mapping) and message.get("role") is None and "from" in message


def _renamed(message: Mapping[str, Any], number: int) -> dict[str, Any]:
    speaker = message["from"]
    if not isinstance(speaker, str) or speaker.lower() not in ROLES:
        raise UserError(
            f"message {number} is from {str(speaker)[:40]!r}; expected one of {', '.join(ROLES)}"
        )
    rest = {key: value for key, value in message.items() if key not in ("role", "from", "value")}
    content = {"content": message["value"]} if message.get("value") is not None else {}
    return {"role": ROLES[speaker.lower()], **rest, **content}
