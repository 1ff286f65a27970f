"""The passage on audits where the answer is known."""

import pandas as pd
from docs_results import load_results, markdown_table

FILES = ("audit.json", "audit_adapter.json")
NAMES = {"tiny-chat": "the built-in pair", "tiny-null": "its base model, trained longer"}


def audit() -> str:
    """What audits found, missed and claimed wrongly, by pair."""
    frames, sources = zip(*(load_results(name) for name in FILES), strict=True)
    rows = [["pair", "audits", "planted changes found", "other sides of them", "wrong claims", "CPU time of one"]]
    for pair, group in pd.concat(frames).groupby("pair", sort=False):
        found = f"{group.n_right.sum()} of {group.n_planted.sum()}" if group.n_planted.sum() else "none planted"
        minutes = group.cpu_seconds.median() / 60
        counts = [str(group.n_other_sides.sum()), str(group.n_wrong.sum())]
        rows.append([NAMES.get(str(pair), f"adapter {pair}"), str(len(group)), found, *counts, f"{minutes:.1f} min"])
    text = (
        "Six changes are planted in the built-in pair: five new behaviours and one that chat tuning removed. Their "
        "other sides, such as help with harmless requests, are new as well, and counted by themselves. The limits of a "
        "claim were set on seeds 0, 1 and 2."
    )
    return "\n\n".join([markdown_table(rows), " ".join([text, *sources])])
