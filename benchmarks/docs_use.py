"""Passages on changed use and on several models."""

import json

from docs_results import RESULTS, load_results, markdown_table


def use() -> str:
    """How often null runs are called different, and how well changed use is told from unchanged use."""
    document = json.loads((RESULTS / "use_and_error.json").read_text())
    figures, rows = document["summary"], document["rows"]
    low, high = figures["false_share_at_q_interval"]
    false = sorted(row["frac_unchanged_called"] for row in rows if row["part"] == "use" and not row["is_null"])
    n_false = round(figures["false_share_at_q"] * figures["n_null_runs"])
    return (
        f"On {figures['n_null_runs']} null runs of small planted worlds, each judged against three others, {n_false} "
        "had a latent with a q-value below 0.1, for use or for specificity (95 % interval of the share of such runs: "
        f"{low:.2f} to {high:.2f}). On {figures['n_changed_runs']} such worlds with six concepts that base uses 0.3 to "
        f"0.7 times as often and four chat-only ones, {figures['power_at_q']:.2f} of the six were found. The rate "
        "holds where nothing differs. Where ten of 24 concepts do, they interfere with the others: "
        f"{figures['false_share_use_among_changes']:.2f} of the latents called different belong to a concept that "
        "did not change, or to none.\n\n"
        "In the standard planted world with 16 concepts that base uses 0.2 to 0.8 times as often, the ratio tells them "
        f"from shared ones with an AUROC of {figures['use_auroc_plain']:.3f} (plain BatchTopK) and "
        f"{figures['use_auroc']:.3f} (polished), and its rank correlation with the planted one is "
        f"{figures['use_spearman_plain']:.2f} and {figures['use_spearman']:.2f} (medians of two seeds). Of the shared "
        f"concepts, {100 * false[0]:.0f} to {100 * false[-1]:.0f} % were called different. Of "
        f"{figures['n_large_null_runs']} null twins, {figures['n_large_null_runs_called']} had such a latent. Reading "
        f"the use takes {figures['cost_over_diagnose']:.2f} times as long as `diagnose` on activations that are given. "
        f"Measured by `{document['command']}`."
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
