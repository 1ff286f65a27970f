"""Explore the crosscoders of an audit, on the prompts that the audit read."""

from collections.abc import Mapping
from pathlib import Path

from sae_lens_crosscoder.activations.eval_data import EvalData
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder
from sae_lens_crosscoder.models.pair import HookedModelPair
from sae_lens_crosscoder.report import Exploration
from sae_lens_crosscoder.storage.json_files import load_json
from sae_lens_crosscoder.workflows.auditing.config import AuditConfig
from sae_lens_crosscoder.workflows.auditing.progress import PLAN_FILENAME
from sae_lens_crosscoder.workflows.auditing.prompts import audit_prompts
from sae_lens_crosscoder.workflows.explore import explore


def load_audit_config(folder: str | Path) -> tuple[AuditConfig, int] | None:
    """The settings of the audit in a folder and the number of its prompts; None if there is none."""
    path = Path(folder, PLAN_FILENAME)
    if not path.exists():
        return None
    plan = load_json(path)
    return AuditConfig(**plan["settings"], output_path=str(folder)), plan["n_prompts"]


def explore_audit(
    crosscoders: Mapping[str, InferenceCrosscoder], pair: HookedModelPair, cfg: AuditConfig, n_prompts: int
) -> dict[str, Exploration]:
    """Explore an audit's crosscoders on its prompts, which they were trained on too.

    Args:
        n_prompts: prompts to use, from the first.
    """
    tokens, token_mask = audit_prompts(cfg, pair).first(n_prompts).tokens
    data = EvalData(pair=pair, tokens=tokens, token_mask=token_mask, batch_size=cfg.batch_size)
    return {name: explore(crosscoder, data, seed=cfg.seed) for name, crosscoder in crosscoders.items()}
