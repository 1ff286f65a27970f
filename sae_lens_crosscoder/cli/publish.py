"""`publish`: a crosscoder's folder on the Hub."""

from collections.abc import Sequence
from dataclasses import dataclass

import simple_parsing

from sae_lens_crosscoder.cli.flags import parse
from sae_lens_crosscoder.workflows.publish import push_to_hub, write_model_card


@dataclass
class PublishConfig:
    """What to publish, and where."""

    crosscoder: str = simple_parsing.field(positional=True)
    """A crosscoder folder, as train writes it."""
    repo_id: str = simple_parsing.field(positional=True)
    """owner/name of the Hub repository, made if it does not exist."""
    license: str | None = None
    """The weights' licence, such as mit or gemma."""
    public: bool = False
    """Let everybody see it; otherwise only you."""
    card_only: bool = False
    """Write the model card into the folder, to be read first, and upload nothing."""


def run(args: Sequence[str]) -> None:
    """Upload a crosscoder's folder with a generated model card to the Hub, private unless --public."""
    cfg = parse(PublishConfig, args, "publish")
    if cfg.card_only:
        print(write_model_card(cfg.crosscoder, cfg.repo_id, cfg.license))
    else:
        print(push_to_hub(cfg.crosscoder, cfg.repo_id, private=not cfg.public, license=cfg.license))
