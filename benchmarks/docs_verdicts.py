"""Passages on how far a verdict can be trusted: the hard planted worlds."""

import pandas as pd
from docs_results import load_results, markdown_table

GOOD_PRECISION, GOOD_RECALL = 0.95, 0.9
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
    seeds = ", ".join(str(seed) for seed in frame.seed.drop_duplicates())
    n_missing = N_WORLDS - (len(rows) - 1)
    missing = f" {n_missing} of the {N_WORLDS} worlds below are not measured yet." if n_missing else ""
    return (
        f"{markdown_table(rows)}\n\nPrecision / recall of verdicts, means over seeds ({seeds}); the last column counts "
        f"false verdicts of the recommended recipe.{missing} It reaches a precision of {GOOD_PRECISION} and a recall "
        f"of {GOOD_RECALL}, for chat-only and base-only concepts and with every seed, in: {_reached(frame, True)}. Not "
        f"in: {_reached(frame, False)}. {_wrong(frame)} {_presence(frame)}{_cost(frame)} {source}"
    )


def _reached(frame: pd.DataFrame, wanted: bool) -> str:
    polished = frame[frame.recommended & ~frame.is_null]
    good = pd.Series(True, polished.index)
    for side in SIDES:
        good &= polished[f"precision_{side}_verdict"].astype(float) >= GOOD_PRECISION
        good &= polished[f"recall_{side}_verdict"].astype(float) >= GOOD_RECALL
    by_cell = good.groupby(polished.cell, sort=False).all()
    return ", ".join(str(cell) for cell in by_cell[by_cell == wanted].index) or "none"


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
