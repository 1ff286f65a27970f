"""Lines about a run, beside its progress bars."""

import sys

from tqdm.auto import tqdm


def write_note(text: str) -> None:
    """Write lines to stderr; in a notebook, which shows stderr as if it were an error, to stdout."""
    tqdm.write(text, file=sys.stdout if "ipykernel" in sys.modules else sys.stderr)
