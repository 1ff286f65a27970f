"""Passages on runs: several processes, predicted step times, and what runs survive."""

import json

import pandas as pd
from docs_results import RESULTS, load_results


def processes() -> str:
    """Several processes beside one."""
    frame, source = load_results("distributed.json")
    deaths = [is_equal for row in frame.resumed_equal_after_death for is_equal in row]
    cards = frame.score_card_unchanged.dropna()
    names = ("max_weight_difference_float64", "first_gradient_difference_float32", "fve_difference")
    weights, gradients, fve = (f"{frame[name].max():.0e}" for name in names)
    return (
        f"With {' and '.join(map(str, sorted(frame.processes.unique())))} processes, the batch, the latents or both "
        f"divided, for L1 and BatchTopK: after 200 steps in float64 the weights equal those of one process to "
        f"{weights}. In float32 the first gradients agree to {gradients} of the largest, and FVE to {fve}. "
        f"{cards.sum():.0f} of {len(cards)} score cards of the standard planted world are unchanged. Checkpoints of "
        f"all processes, resumed by half as many and then by one, gave equal weights in {frame.resumed_equal.sum()} of "
        f"{len(frame)} layouts. A run with a process killed at a random moment, resumed, gave equal weights "
        f"{sum(deaths)} of {len(deaths)} times. {source}"
    )


def faults() -> str:
    """Kills, long runs, faults of every kind in every kind of write, and damaged files."""
    frame, source = load_results("faults.json")
    files, files_source = load_results("mutated_files.json")
    pages = pd.DataFrame(json.loads((RESULTS / "mutated_files.json").read_text())["pages"])
    trained, cached = frame[frame.name == "train"], frame[frame.name == "cache"]
    cases, cases_source = load_results("fault_cases.json")
    soaked = frame[frame.name.str.startswith("soak/")]
    growth = " and ".join(f"{row.growth_mib:.1f} MiB (of {row.warm_up_mib:,.0f})" for row in soaked.itertuples())
    return (
        f"- **Killed training.** SIGKILL at {len(trained)} random moments, {trained.was_writing.sum():.0f} of them "
        f"while a checkpoint was being written: {trained.equal.sum():.0f} of {len(trained)} resumed runs end with the "
        f"bits of the unbroken run, and {trained.n_unreadable.sum():.0f} checkpoints were unreadable.\n"
        f"- **Killed caching.** {len(cached)} kills: {cached.equal.sum():.0f} equal caches after a restart.\n"
        f"- **Memory.** In {soaked.minutes.min():.0f} minutes of training and of caching, resident memory rose by "
        f"{growth} over that of the first {soaked.warm_up_minutes.max():.0f} minutes.\n"
        f"{_cases(cases)}\n"
        f"- **Damaged files.** {files.n.sum():,} truncated, bit-flipped and otherwise mutated files through every "
        f"loader: {files.refused.sum():,} refused with the file's name, {files.loaded_right.sum():,} loaded correctly, "
        f"{files.told.sum():,} loaded with a warning that names the edited file, {files.wrong.sum():,} loaded wrongly, "
        f"{files.crashed.sum():,} crashes.\n"
        f"- **Hostile texts.** {pages.n.sum():,} pages of {len(pages)} kinds (reports, the explorer, model cards) with "
        f"markup and control characters as names, tokens and labels: {pages.shown_right.sum():,} show them as text, "
        f"{pages.wrong.sum():,} do not, {pages.crashed.sum():,} crashes.\n\n{source} {cases_source} "
        f"{files_source}"
    )


def _cases(cases: pd.DataFrame) -> str:
    """A line of all, and a table with a row per fault."""
    n_works = cases.work[cases.work != ""].nunique()
    total = cases[["n", "as before", "refused", "wrong", "lost"]].sum()
    table = cases.groupby("fault", sort=False).sum(numeric_only=True)
    rows = "\n".join(
        f"| {fault} | {row.n:.0f} | {row['as before']:.0f} | {row.written:.0f} | {row.refused + row.resumed:.0f} | "
        f"{row.wrong + row.lost:.0f} |"
        for fault, row in table.iterrows()
    )
    return (
        f"- **Faults in every kind of write.** {total.n:,} faults in {n_works} kinds of write (checkpoints, the final "
        "save, caches, sums and tables of a diagnosis, reports, the explorer, model cards, first looks, directions), "
        f"in workers and in ranks: {total.wrong:,} wrong reads, {total.lost:,} losses. After each, the same call gave "
        "what it gives when nothing strikes.\n\n"
        "| fault | times | left as before | already written | refused by name until the call was made again | wrong or "
        f"lost |\n|---|---|---|---|---|---|\n{rows}\n"
    )
