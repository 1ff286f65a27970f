"""The command `serve`."""

from collections.abc import Sequence
from functools import partial

from sae_lens_crosscoder.cli.flags import parse
from sae_lens_crosscoder.serving import ServeConfig, serve


def run(args: Sequence[str]) -> None:
    """Serve the explorer of saved crosscoders with a panel that runs their models."""
    serve(parse(ServeConfig, args, "serve"), announce=partial(print, flush=True))
