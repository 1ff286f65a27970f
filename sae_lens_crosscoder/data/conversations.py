"""Conversations as datasets write them, turned into the messages that a chat template takes."""

from collections.abc import Mapping
from typing import Any

from sae_lens_crosscoder.data.mix import MixSource

# Where a source without a `column` keeps its conversations, in this order.
COLUMNS = ("messages", "conversations", "conversation")

_TEMPLATE_ROLES = ("system", "user", "assistant", "tool", "developer")
_SHAREGPT_KEYS = {"role": "from", "content": "value"}
_SHAREGPT_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
}


class UnknownRoleError(ValueError):
    """A message's role is neither a template's nor mapped to one."""


def is_empty(conversation: Any, source: MixSource) -> bool:
    """True for a conversation without messages, or with nothing but blank ones.

    >>> is_empty([], MixSource("chats.jsonl")), is_empty([{"from": "human", "value": "hi"}], MixSource("chats.jsonl"))
    (True, False)
    """
    if conversation is None or isinstance(conversation, str):
        return not (conversation or "").strip()
    if not isinstance(conversation, list):
        return False  # not a conversation; `messages_of` says so
    return not any(_has_content(message, source) for message in conversation)


def _has_content(message: Any, source: MixSource) -> bool:
    if not isinstance(message, Mapping):
        return True
    content = _value(message, source, "content")
    return bool(content.strip() if isinstance(content, str) else content or message.get("tool_calls"))


def messages_of(conversation: Any, source: MixSource) -> list[dict[str, Any]]:
    """Messages with `role` and `content`; ShareGPT's keys and role names are mapped without being asked.

    >>> messages_of([{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}], MixSource("chats.jsonl"))
    [{'role': 'user', 'content': 'hi'}, {'role': 'assistant', 'content': 'ho'}]

    Raises:
        UnknownRoleError: for a role that is neither a template's nor mapped by `source.roles`.
        ValueError: for messages without the source's keys.
    """
    if isinstance(conversation, str):
        return [{"role": "user", "content": conversation}]  # as SAELens does
    keys = {"role": source.role_key, "content": source.content_key}
    missing = {keys[key] for message in conversation for key in keys if _key(message, source, key) not in message}
    if missing:
        raise ValueError(f"its messages have no {sorted(missing)}: set role_key and content_key")
    return [
        {"role": _role(_value(message, source, "role"), source), "content": _value(message, source, "content")}
        for message in conversation
    ]


def _key(message: Mapping[str, Any], source: MixSource, key: str) -> str:
    """The name of a message's `role` or `content`: the source's, or ShareGPT's if the source names none of its own."""
    name: str = getattr(source, f"{key}_key")
    sharegpt = _SHAREGPT_KEYS[key]
    # Arrow fills in keys that only other rows have with None.
    return sharegpt if name == key and message.get(name) is None and sharegpt in message else name


def _value(message: Mapping[str, Any], source: MixSource, key: str) -> Any:
    return message.get(_key(message, source, key))


def _role(name: Any, source: MixSource) -> str:
    if name in source.roles:
        return source.roles[name]
    role = _SHAREGPT_ROLES.get(name, name)
    if role not in _TEMPLATE_ROLES:
        raise UnknownRoleError(
            f"has a message of the unknown role {name!r}. Map it, as in roles={{{name!r}: 'user'}}, or remove the row"
        )
    return role
