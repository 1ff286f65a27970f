"""Escape names and tokens, so that text from models and files is displayed and never interpreted."""

import html
from typing import Any

_BIDIRECTIONAL = [0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
_SURROGATES = range(0xD800, 0xE000)  # UTF-8 cannot encode them
_INVISIBLE = [*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029, *_BIDIRECTIONAL, *_SURROGATES]
_ESCAPES = {code: f"\\u{code:04x}" for code in _INVISIBLE}


def visible(text: Any) -> str:
    r"""Return a value as text with control characters, bidirectional marks and surrogates escaped.

    >>> print(visible("l1\u202egpj"))
    l1\u202egpj
    """
    return str(text).translate(_ESCAPES)


def inert(text: Any) -> str:
    r"""Return a value as HTML text without markup: `visible`, then HTML-escaped.

    Plotly reads HTML entities and a few tags in its texts, so the same escape protects figures too.

    >>> print(inert('<b onclick="x">'))
    &lt;b onclick=&#34;x&#34;&gt;
    """
    return html.escape(visible(text)).replace("&quot;", "&#34;")  # plotly knows no &quot;
