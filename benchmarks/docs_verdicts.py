"""Passages on how far a verdict can be trusted: the hard planted worlds."""

import pandas as pd
from docs_results import load_results, markdown_table

BAR = {"precision": 0.95, "recall": 0.9}
SIDES = ("chat", "base")
N_WORLDS = 16
"""Worlds of the suite. A results file of a run that goes on has fewer."""


def _pair(frame: pd.DataFrame, side: str) -> str:
    """Return precision / recall as means over seeds; a side without any verdict has no precision."""
    means = frame[[f"precision_{side}_verdict", f"recall_{side}_verdict"]].astype(float).mean()
    return " / ".join("none" if value != value else f"{value:.2f}" for value in means)


def hard() -> str:
    """One line per hard world: verdicts of plain BatchTopK and after polishing, and of the null twin."""
    frame, source = load_results("planted_hard.json")
    frame["recipe"] = frame.recipe.where(~frame.is_null, "null twin")
    heading = ["world", *(f"{side}, {recipe}" for side in SIDES for recipe in ("plain", "polished")), "null twin"]
    rows = [heading]
    for cell in frame.cell.drop_duplicates():
        of_cell = frame[frame.cell == cell]
        by_recipe = {str(name): group for name, group in of_cell.groupby("recipe")}
        if "polish" not in by_recipe:
            continue
        numbers = [_pair(by_recipe[recipe], side) for side in SIDES for recipe in ("plain", "polish")]
        null = by_recipe.get("null twin")
        n_false = "not measured" if null is None else str(int(sum(null[f"n_{side}_verdict"].sum() for side in SIDES)))
        rows.append([str(cell), *numbers, n_false])
    seeds = ", ".join(str(seed) for seed in sorted(frame.seed.unique()))
    n_missing = N_WORLDS - (len(rows) - 1)
    missing = f" {n_missing} of the {N_WORLDS} worlds below are not measured yet." if n_missing else ""
    return (
        f"{markdown_table(rows)}\n\nPrecision / recall of verdicts, means over seeds ({seeds}); the last column counts "
        f"false verdicts of the recommended recipe.{missing} In the mean over seeds it reaches a precision of "
        f"{BAR['precision']} and a recall of {BAR['recall']}, for chat-only and for base-only concepts, in "
        f"{_reached(frame, ['cell'])}. With every seed by itself, where one wrong verdict or one unfound concept of "
        f"eight weighs more, in {_reached(frame, ['cell', 'seed'])}. {_wrong(frame)} "
        f"{_presence(frame)}{_cost(frame)} {source}"
    )


def hard_headline() -> str:
    """What the recommended recipe reaches over all hard worlds, for the README."""
    frame, _ = load_results("planted_hard.json")
    recommended, null = frame[frame.recommended & ~frame.is_null], frame[frame.is_null]
    n = {side: recommended[f"n_{side}_verdict"] for side in SIDES}
    right = sum((n[side] * recommended[f"precision_{side}_verdict"].astype(float)).sum() for side in SIDES)
    recalls = recommended[[f"recall_{side}_verdict" for side in SIDES]].astype(float)
    null = null[~null.drop(columns="cell").astype(str).duplicated()]  # an equal twin has the row of the first
    n_false = int(sum(null[f"n_{side}_verdict"].sum() for side in SIDES))
    return (
        f"With BatchTopK and polish, {right / sum(n[side].sum() for side in SIDES):.1%} of the verdicts in "
        f"{recommended.cell.nunique()} [hard worlds](docs/trust-a-verdict.md), {recommended.seed.nunique()} seeds "
        f"each, are right, and they find {recalls.mean(axis=None):.0%} of the concepts of one model alone. In "
        f"{len(null)} runs on worlds without a difference {n_false} latents get one."
    )


def short_of(frame: pd.DataFrame, keys: list[str]) -> str:
    """List the worlds in which the recommended recipe falls short of the bar, in means over rows with equal keys."""
    polished = frame[frame.recommended & ~frame.is_null]
    columns = {f"{name}_{side}_verdict": bar for name, bar in BAR.items() for side in SIDES}
    means = polished.astype(dict.fromkeys(columns, float)).groupby(keys, sort=False)[list(columns)].mean()
    short = pd.concat([means[column] < bar for column, bar in columns.items()], axis=1).any(axis=1)
    cells = short.groupby("cell", sort=False).any()
    return ", ".join(str(cell) for cell in cells[cells].index) or "none"


def _reached(frame: pd.DataFrame, keys: list[str]) -> str:
    short = short_of(frame, keys)
    return "all worlds" if short == "none" else f"all worlds but: {short}"


def _wrong(frame: pd.DataFrame) -> str:
    polished = frame[frame.recommended & ~frame.is_null]
    kinds = pd.Series([kind for row in polished.wrong_verdict_kinds for kind in row], dtype=object).value_counts()
    names = {"none": "without a concept"}
    parts = [f"{n} {names.get(str(kind), f'on {kind} concepts')}" for kind, n in kinds.items()]
    n_all = int(sum(polished[f"n_{side}_verdict"].sum() for side in SIDES))
    wrong = f" ({', '.join(parts)})" if parts else ""
    return f"Wrong verdicts after polishing: {int(kinds.sum())} of {n_all:,}{wrong}."


def _presence(frame: pd.DataFrame) -> str:
    polished = frame[frame.recommended & ~frame.is_null]
    presence, nu = polished.min_presence_decoupled.min(), polished.min_nu_reconstruction_decoupled.min()
    if presence != presence:  # no latent of a decoupled concept was one-sided
        return ""
    return (
        f"The presence of right one-sided latents is at most {polished.max_presence_right.max():.2f}, that of latents "
        f"of decoupled concepts at least {presence:.2f}; the latter's nu_reconstruction, with a limit of 0.5 in the "
        f"paper, is at least {nu:.2f}. "
    )


def _cost(frame: pd.DataFrame) -> str:
    polished = frame[frame.recommended]
    ratios = polished.cpu_seconds / polished.cpu_seconds_plain
    worst = str(polished.cell.iloc[int(ratios.argmax())])
    return (
        f"Training with polish takes {ratios.median():.1f} times the CPU time of plain BatchTopK (median; at most "
        f"{ratios.max():.1f} times, in the world {worst}, and more for a larger k)."
    )


def co_active() -> str:
    """Three readings of the same latents: through the origin, within groups, and beside the co-active latents."""
    frame, source = load_results("partial_regression.json")
    rows = [["crosscoder", "reading", *SIDES, "decoupled concepts acquitted"]]
    for (cell, reading), group in frame.groupby(["cell", "reading"], sort=False):
        means = group.astype({f"{name}_{side}": float for name in BAR for side in SIDES}).mean(numeric_only=True)
        sides = [f"{means[f'precision_{side}']:.2f} / {means[f'recall_{side}']:.2f}" for side in SIDES]
        n_acquitted, n = int(group.n_decoupled_acquitted.sum()), int(group.n_decoupled.sum())
        rows.append([str(cell), str(reading), *sides, f"{n_acquitted} of {n}"])
    seeds = ", ".join(str(seed) for seed in sorted(frame.seed.unique()))
    return (
        f"{markdown_table(rows)}\n\nPrecision / recall of the verdicts, means over seeds ({seeds}); the last column "
        f"counts chat-only latents of decoupled concepts that get the verdict chat_specific. {source}"
    )
