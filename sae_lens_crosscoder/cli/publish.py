"""The command `publish`."""

from collections.abc import Sequence
from dataclasses import dataclass

import simple_parsing

from sae_lens_crosscoder.cli.flags import parse
from sae_lens_crosscoder.workflows.publish import push_to_hub, write_model_card


@dataclass
class PublishConfig:
    """A crosscoder to publish, and its place on the Hub."""

    crosscoder: str = simple_parsing.field(positional=True)
    """A crosscoder's folder, as train writes it."""
    repo_id: str = simple_parsing.field(positional=True)
    """Hub repository, as owner/name; created if it does not exist."""
    license: str | None = None
    """License of the weights, such as mit or gemma."""
    public: bool = False
    """Make the repository public; private by default."""
    dry_run: bool = False
    """Write the model card into the folder, and upload nothing."""


def run(args: Sequence[str]) -> None:
    """Upload a crosscoder's folder with a generated model card to the Hub, private unless --public."""
    cfg = parse(PublishConfig, args, "publish")
    if cfg.dry_run:
        print(write_model_card(cfg.crosscoder, cfg.repo_id, cfg.license))
    else:
        print(push_to_hub(cfg.crosscoder, cfg.repo_id, private=not cfg.public, license=cfg.license))
