"""Names made inert: whatever a crosscoder or a concept is called, it is text and nothing else."""

import html
from typing import Any

_BIDIRECTIONAL = [0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
_SURROGATES = range(0xD800, 0xE000)  # which no file in UTF-8 can hold
_INVISIBLE = [*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029, *_BIDIRECTIONAL, *_SURROGATES]
_ESCAPES = {code: f"\\u{code:04x}" for code in _INVISIBLE}


def visible(text: Any) -> str:
    r"""A value as text whose control and bidirectional characters, and halves of characters, are escapes to be seen.

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
