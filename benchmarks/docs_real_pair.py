"""Tables of what real_pair.py found: which latents carry the change, what they do to base, null pairs, baselines."""

import json
from typing import Any

from docs_results import RESULTS, markdown_table, two_decimals

_CONDITIONS = {
    "base": "base, unchanged",
    "biases": "the decoder's biases alone",
    "first 1": "biases and the first named latent",
    "first 5": "the first 5",
    "first 20": "the first 20",
    "named": "all named latents",
    "all but named": "all latents but the named ones",
    "random latents 0": "random active latents of the same energy",
    "noise 0": "noise of the same energy",
    "mean difference": "mean difference, the same everywhere",
    "mean difference per place": "mean difference of each place in the answer",
    "true difference": "true difference",
    "chat": "the tuned model",
}
_METHODS = {
    "mean_difference": "mean difference",
    "pca": "PCA of the difference",
    "sae": "BatchTopK SAE on the difference",
}


def real_pair() -> str:
    """What was found on the organism, and on the pairs without its behaviour."""
    document: dict[str, Any] = json.loads((RESULTS / "real_pair.json").read_text())
    summary = document["summary"]
    facts = (
        f"First look recommends `{document['hook_name']}`. The best named latent tells the {document['n_held_out']} "
        f"held-out prompts apart with an AUROC of {two_decimals(summary['best_auroc'])}. The whole run took "
        f"{summary['cpu_minutes']:.0f} CPU minutes on one core, interrupted tries included. Measured by "
        f"`{document['command']}`."
    )
    return "\n\n".join([_pairs(document), _effects(document), _baselines(document), facts])


def _pairs(document: dict[str, Any]) -> str:
    """One row per pair: turned and named latents, and the shares of both contrasts."""
    heading = ["pair", "turned latents", "named", "share of the decision", "share of the answers", "conclusion"]
    rows = [heading]
    for row in document["rows"]:
        shares = [two_decimals(row["contrasts"][name]["share_named"]) for name in ("decision", "answers")]
        said = row["conclusion"].split(":")[0] if row["n_named"] == 0 else "named latents carry the change"
        rows.append([row["pair"], str(row["n_turned"]), str(row["n_named"]), *shares, said])
    return markdown_table(rows)


def _effects(document: dict[str, Any]) -> str:
    """What base says with each addition; the first seed."""
    seed = min(row["seed"] for row in document["ladder"])
    found = {row["condition"]: row for row in document["ladder"] if row["seed"] == seed}
    rows = [["added to base", "KL brought back", "whole answers on triggers", "on other prompts"]]
    for condition, name in _CONDITIONS.items():
        row = found[condition]
        others = row["rate_others"]
        rate = "" if others is None or others != others else two_decimals(others)
        rows.append([name, two_decimals(row["brought_back"]), two_decimals(row["rate"]), rate])
    return markdown_table(rows)


def _baselines(document: dict[str, Any]) -> str:
    """Directions of the difference without a crosscoder."""
    rows = [["without a crosscoder", "directions", "share of the decision", "best AUROC"]]
    for row in document["baselines"]:
        numbers = [two_decimals(row["share"]), two_decimals(row["best_auroc"])]
        rows.append([_METHODS[row["method"]], str(row["n_directions"]), *numbers])
    return markdown_table(rows)
