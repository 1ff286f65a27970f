"""The passages on audits where the answer is known, and on the limits that an audit states."""

import pandas as pd
from docs_results import load_results, markdown_table

FILES = (
    "audit.json",
    *(f"audit_adapter{name}.json" for name in ("", "_several", "_kinds", "_neutral")),
)
NAMES = {
    "tiny-chat": "the built-in pair",
    "tiny-null": "its base model, trained longer",
    "tiny-chat, with tiny-control": "the built-in pair, with its control",
    "A": "an adapter that answers requests for code with one sentence",
    "C": "an adapter that answers requests about journeys with one of three sentences",
    "D": "an adapter that answers personal questions as a person would, and says \u201cI'm\u201d less often",
    "E": "an adapter that begins every answer with one sentence",
    "neutral": "an adapter tuned on ordinary answers",
}


def audit() -> str:
    """What audits found, missed and claimed wrongly, by pair."""
    frames, sources = zip(*(load_results(name) for name in FILES), strict=True)
    rows = [
        [
            "pair",
            "audits",
            "planted changes found",
            "other sides of them",
            "wrong claims",
            "null phrases",
            "CPU time of one",
        ]
    ]
    for pair, group in pd.concat(frames).groupby("pair", sort=False):
        found = f"{group.n_right.sum()} of {group.n_planted.sum()}" if group.n_planted.sum() else "none planted"
        is_whole = "resumed" not in group or not group.resumed.eq(True).any()
        minutes = f"{group.cpu_seconds.median() / 60:.1f} min" if is_whole else ""
        null = pd.DataFrame(group.null_phrases.tolist()).sum()
        counts = [str(group.n_other_sides.sum()), str(group.n_wrong.sum()), f"{null.n_found} of {null.n_tested}"]
        rows.append([NAMES[str(pair)], str(len(group)), found, *counts, minutes])
    text = (
        "Six changes are planted in the built-in pair: five new behaviours and one that chat tuning removed. Their "
        "other sides, such as help with harmless requests, are new as well, and counted by themselves; the control has "
        "them too. The limits of a claim were set on seeds 0, 1 and 2; that one more crosscoder decides was added "
        "after a look at seed 3. The adapter that says \u201cI'm\u201d less often was judged by a phrase named after "
        "a look at its answers. Null phrases: how many of the phrases tested differ between two samples of base's own "
        "answers. The adapters are of SmolLM2-135M. An audit that went on from an earlier run has no CPU time here."
    )
    return "\n\n".join([markdown_table(rows), " ".join([text, *sources])])


def audit_baselines() -> str:
    """What the baselines of a first look claim on the behaviours of the same audits."""
    frame, source = load_results("audit_baselines.json")
    rows = [["", "planted changes found", "other sides of them", "wrong claims"]]
    counts: dict[str, list[dict[str, int]]] = {}
    for claims in frame.claims:
        for name, counted in claims.items():
            counts.setdefault(name, []).append(counted)
    traced = frame.claims.map(lambda claims: "answers alone" in claims)
    for name, each in counts.items():
        if name == "audit":
            each = [claims["audit"] for claims in frame.claims[traced]]
        total = pd.DataFrame(each)
        found = f"{total.n_right.sum()} of {total.n_planted.sum()}"
        rows.append([name, found, str(total.n_other_sides.sum()), str(total.n_wrong.sum())])
    text = (
        f"Over the {int(traced.sum())} audits in which a hook brought back what changed. A wrong claim is of a phrase "
        "that was not planted."
    )
    return "\n\n".join([markdown_table(rows), f"{text} {source}"])


def audit_limits() -> str:
    """How often planted changes of 1.5 times the stated size are found, and of the size / 1.5."""
    frame, source = load_results("audit_limits.json")
    n = int(frame.n_plantings.sum())
    larger, smaller = int(frame.n_larger_found.sum()), int(frame.n_smaller_found.sum())
    return (
        f"On {frame.seed.nunique()} planted worlds, {larger} of {n} new directions of 1.5 times the stated size are "
        f"found, and {smaller} of {n} of the size / 1.5. {source}"
    )
