"""Passages on changed use and on several models."""

import json
from typing import Any

from docs_results import RESULTS, load_results, markdown_table

WORLDS = ("planted", "builtin")


def use() -> str:
    """How often null runs are called different, and how well changed use is told from unchanged use."""
    document = json.loads((RESULTS / "use_and_error.json").read_text())
    figures, rows = document["summary"], document["rows"]
    low, high = figures["false_share_at_q_interval"]
    false = sorted(row["frac_unchanged_called"] for row in rows if row["part"] == "use" and not row["is_null"])
    called, runs = ([figures[f"n_null_runs{name}_{world}"] for world in WORLDS] for name in ("_called", ""))
    return (
        f"On {runs[0]} null runs of small planted worlds and {runs[1]} of the built-in pair (`jittered` and "
        f"`split_halves`), each judged against three others, {called[0]} and {called[1]} had a latent with a q-value "
        f"below 0.1, for use or for specificity: {figures['false_share_at_q']:.2f} of all (95 % interval "
        f"{low:.2f} to {high:.2f}), {figures['false_share_at_q_use']:.2f} for use. {_kinds(figures)}\n\n"
        f"On {figures['n_changed_runs']} such "
        "planted worlds with six concepts that base uses 0.3 to 0.7 times as often and four chat-only ones, "
        f"{figures['power_at_q']:.2f} of the six were found. The rate holds where nothing differs. Where ten of 24 "
        "concepts do, in 16 dimensions, "
        f"{figures['false_share_use_among_changes']:.2f} of the latents called different belong to a concept that did "
        "not change, or to none. That was 0.35 before what only one model has was taken out of the other's slot: in "
        "the code of the chat model alone, its new concepts passed for other latents.\n\n"
        "In the standard planted world with 16 concepts that base uses 0.2 to 0.8 times as often, the ratio tells them "
        f"from shared ones with an AUROC of {figures['use_auroc_plain']:.3f} (plain BatchTopK) and "
        f"{figures['use_auroc']:.3f} (polished), and its rank correlation with the planted one is "
        f"{figures['use_spearman_plain']:.2f} and {figures['use_spearman']:.2f} (medians of two seeds). Of the shared "
        f"concepts, {100 * false[0]:.0f} to {100 * false[-1]:.0f} % were called different. Of "
        f"{figures['n_large_null_runs']} null twins, {figures['n_large_null_runs_called']} had such a latent. Reading "
        f"the use takes {figures['cost_over_diagnose']:.2f} times as long as `diagnose` on activations that are given. "
        f"Measured by `{document['command']}`."
    )


def _kinds(figures: dict[str, Any]) -> str:
    """Shares of the built-in null runs that were called different, by what they are judged against."""

    def share(name: str) -> str:
        low, high = figures[f"false_share_at_q_{name}_interval"]
        return f"{figures[f'false_share_at_q_{name}']:.2f} ({low:.2f} to {high:.2f})"

    n = figures["n_null_runs_split_halves"]
    return (
        f"**A null pair of another kind is not enough.** Of the {n} `split_halves` runs of the built-in pair (base "
        f"beside base trained longer on its own text), {share('split_halves')} are called different against runs of "
        f"both kinds, kept apart; {share('split_halves_pooled')} with the kinds pooled; and "
        f"{share('split_halves_other_kind')} against jittered runs alone. Of the {figures['n_null_runs_jittered']} "
        f"jittered runs it is {share('jittered')} each time."
    )


def several_models() -> str:
    """How well emerging, persisting and vanishing concepts are told apart."""
    frame, source = load_results("planted_three.json")
    frame["widths"] = [", ".join(map(str, widths)) for widths in frame.widths]
    real, null = frame[~frame.null.astype(bool)], frame[frame.null.astype(bool)]
    kinds = ("emerge", "persist", "vanish")
    heading = ["widths", "verdicts", *(f"{kind}: precision, recall" for kind in kinds)]
    table = [heading]
    for (widths, nu_kind), part in real.groupby(["widths", "nu_kind"], sort=False):
        cells = [f"{part[f'precision_{kind}'].min():.2f}, {part[f'recall_{kind}'].min():.2f}" for kind in kinds]
        table.append([str(widths), "basis-free" if nu_kind == "basis_free" else "ordinary", *cells])
    n_false = int(null.n_emerge.sum() + null.n_vanish.sum())
    return (
        "Three planted models: of 174 concepts, 12 emerge and 12 vanish at either step, and 12 are in the middle model "
        f"alone. Polished BatchTopK, {frame.seed.nunique()} seeds; the smallest values over seeds and any two "
        "models:\n\n"
        f"{markdown_table(table)}\n\n"
        f"In a null twin, where all concepts persist, {n_false} latents were called specific to a model. {source}"
    )
