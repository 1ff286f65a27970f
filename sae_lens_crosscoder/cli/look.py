"""The command `look`."""

from collections.abc import Sequence
from pathlib import Path

from sae_lens_crosscoder.cli.flags import parse
from sae_lens_crosscoder.workflows.look import PAGE_FILENAME, LookConfig, run_look

_COLUMNS = ["difference_last", "difference_all", "position_0_base", "share_last", "share_all", "share_tokens"]


def run(args: Sequence[str]) -> None:
    """Find where and on what two models differ, before training."""
    cfg = parse(LookConfig, args, "look")
    look = run_look(cfg)
    print(f"\n{look.hooks[_COLUMNS].round(3).to_string()}\n")
    if len(look.directions):
        columns = ["hook_name", "kind", "direction", "explained", "share_kl", "frac_chat_token"]
        print(f"{look.directions[columns].round(3).to_string(index=False)}\n")
    print(f"{look.manifest['split']}\n{look}\n")
    print(Path(cfg.output_path, PAGE_FILENAME))
