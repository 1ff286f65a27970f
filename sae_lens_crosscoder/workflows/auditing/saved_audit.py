"""Read the audit in a folder again: its settings, and its crosscoders on its answers."""

from collections.abc import Mapping
from pathlib import Path

from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder
from sae_lens_crosscoder.models.pair import HookedModelPair
from sae_lens_crosscoder.report import Exploration
from sae_lens_crosscoder.storage.json_files import load_json
from sae_lens_crosscoder.workflows.auditing.answers import ANSWERS_FOLDER, answer_files
from sae_lens_crosscoder.workflows.auditing.config import AuditConfig
from sae_lens_crosscoder.workflows.auditing.explorer import MOST_ROWS, explore_answers
from sae_lens_crosscoder.workflows.auditing.progress import PLAN_FILENAME
from sae_lens_crosscoder.workflows.auditing.prompts import audit_prompts


def load_audit_config(folder: str | Path) -> tuple[AuditConfig, int] | None:
    """The settings of the audit in a folder and the number of its prompts; None if there is none."""
    path = Path(folder, PLAN_FILENAME)
    if not path.exists():
        return None
    plan = load_json(path)
    return AuditConfig(**plan["settings"], output_path=str(folder)), plan["n_prompts"]


def explore_audit(
    crosscoders: Mapping[str, InferenceCrosscoder],
    pair: HookedModelPair,
    cfg: AuditConfig,
    n_prompts: int,
    n_rows: int | None = None,
) -> dict[str, Exploration]:
    """Explore an audit's crosscoders on both models' answers, as its own explorer does.

    Args:
        n_prompts: prompts of the audit.
        n_rows: answers to show, from the first; None for as many as the audit's explorer shows.
    """
    prompts = audit_prompts(cfg, pair).first(n_prompts)
    rows = answer_files(cfg, pair, prompts, Path(cfg.output_path, ANSWERS_FOLDER)).generate(pair)
    n_rows = MOST_ROWS if n_rows is None else n_rows
    return explore_answers(crosscoders, pair, rows, n_rows=n_rows, batch_size=cfg.batch_size, seed=cfg.seed)
