"""Names made inert: whatever a crosscoder or a concept is called, it is text and nothing else."""

import html
from typing import Any

_INVISIBLE = [*range(0x20), *range(0x7F, 0xA0), 0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
_ESCAPES = {code: f"\\u{code:04x}" for code in _INVISIBLE}


def visible(text: Any) -> str:
    r"""A value as text that cannot reorder the text around it: control characters, and Unicode's bidirectional ones,
    become visible escapes.

    >>> print(visible("l1\u202egpj"))
    l1\u202egpj
    """
    return str(text).translate(_ESCAPES)


def inert(text: Any) -> str:
    r"""A value as HTML text that cannot be markup either.

    Plotly reads HTML entities and a few tags in its texts, so the same escape serves both.

    >>> print(inert('<b onclick="x">'))
    &lt;b onclick=&#34;x&#34;&gt;
    """
    return html.escape(visible(text)).replace("&quot;", "&#34;")  # plotly knows no &quot;
