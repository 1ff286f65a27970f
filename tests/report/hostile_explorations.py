"""Words that try to be markup, and how they must be displayed."""

from tests.report.explorations import WordTokenizer

WORDS = {
    2: " <script>alert(1)</script>",
    3: "</script><img src=x onerror=window.hacked=1>",
    4: " \u202eevil\u2066",
    5: " nul\0",
    6: " \U0001f469\u200d\U0001f680",
    7: " \ufffd",  # a part of a character
    8: "\n",
    9: " &lt;b&gt;",
}
SHOWN = {
    2: " <script>alert(1)</script>",
    3: "</script><img src=x onerror=window.hacked=1>",
    4: r" \u202eevil\u2066",
    5: r" nul\u0000",
    6: " \U0001f469\u200d\U0001f680",
    7: "<piece 7>",
    8: "\u21b5",
    9: " &lt;b&gt;",
}
N, LATENT = 200, 12
N_EXAMPLES = 4 + 3 * 2


READS_AS = {WordTokenizer(WORDS).decode([i]): text for i, text in SHOWN.items()}
READS_AS |= {WordTokenizer(WORDS).convert_ids_to_tokens(7): SHOWN[7]}


def shown(text):
    """How a token's text reads in the page, written down by hand for the hostile ones."""
    return READS_AS.get(text, text)
