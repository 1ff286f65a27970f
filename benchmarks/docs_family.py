"""The passage on what a family of models costs against a pair."""

from docs_results import load_results, markdown_table

NAMES = {
    "step": "a training step",
    "diagnose": "a diagnosis of two of its models",
    "use": "the use of latents by two of its models",
    "diagnose_all": "a diagnosis of all against the first",
    "use_all": "the use of latents by all against the first",
}


def family_cost() -> str:
    """Ratios to a pair, by the number of models."""
    frame, source = load_results("family_cost.json")
    sizes = sorted(set(frame.n_models) - {2})
    rows = [["", *(f"{n} models" for n in sizes)]]
    for name, group in frame.groupby("name", sort=False):
        ratio = group.set_index("n_models").ratio
        rows.append([NAMES[str(name)], *(f"{ratio[n]:.2f}" for n in sizes)])
    text = "CPU time relative to a pair of models, each 256 wide, 2,048 latents; the goal was n / 2 for n models."
    return "\n\n".join([markdown_table(rows), f"{text} {source}"])
