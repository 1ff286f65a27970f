"""The page of an audit: its findings with their evidence, what was not found, and what it could not have seen."""

from pathlib import Path
from typing import Any

import pandas as pd

from sae_lens_crosscoder.analysis.audit.result import Audit
from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.report.html.colours import colour_rules
from sae_lens_crosscoder.report.html.document import render_page, resource, write_document

_CARRIER_COLUMNS = (
    "share",
    "coverage",
    "auroc",
    "auroc_by_chance",
    "written",
    "presence",
    "presence_low",
    "presence_high",
)
_EFFECT_COLUMNS = (
    *("brought_back", "brought_back_shared", "brought_back_control", "brought_back_mean_difference"),
    *("rate_base", "rate", "rate_shared", "rate_control", "rate_chat", "rate_others", "n_prompts"),
)
_LABEL_COLUMNS = ("text", "detection", "interpreter")


@validate_arguments
def write_audit(audit: Audit, path: str | Path, title: str = "Audit") -> Path:
    """Write an audit as one HTML file that opens anywhere, offline; every number on it is in `audit.to_dict()`.

    Args:
        audit: the result of `slc.audit`.
    """
    facts = audit.to_dict()
    page = render_page(
        "pages/audit.html",
        title=title,
        style="\n" + resource("html/page.css") + colour_rules("background"),
        scripts=[],
        audit=facts,
        groups=[
            ("Findings", [_with_tables(finding) for finding in facts["findings"]]),
            ("Changes that the control has too", [_with_tables(f) for f in facts["in_control"]]),
            ("In the answers, but not traced to latents", [_with_tables(f) for f in facts["answers_only"]]),
        ],
    )
    return write_document(page, path)


def _with_tables(finding: dict[str, Any]) -> dict[str, Any]:
    crosscoders = finding["evidence"]["crosscoders"]
    return {
        **finding,
        "carriers": _table(crosscoders, "carriers", _CARRIER_COLUMNS),
        "effects": _table(crosscoders, "effect", _EFFECT_COLUMNS),
        "examples": pd.DataFrame(finding["examples"], columns=["prompt", "base", "chat"]),
        "labels": pd.DataFrame(finding["labels"], columns=["latent", *_LABEL_COLUMNS]).set_index("latent"),
    }


def _table(crosscoders: list[dict[str, Any]], part: str, columns: tuple[str, ...]) -> pd.DataFrame:
    """A row per crosscoder that has this part of the evidence, by its seed."""
    rows = {each["seed"]: {name: each[part][name] for name in columns} for each in crosscoders if each[part]}
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(columns))
