"""Tables of what crosscoders find: on planted worlds, and on the built-in pair."""

import json
from collections.abc import Mapping
from typing import Any

import pandas as pd
from docs_results import RESULTS, load_results, markdown_table, two_decimals
from docs_verdicts import hard_headline


def claims() -> str:
    """The paper's claims on the standard planted world, means over seeds."""
    frame, source = load_results("planted_pairs.json")
    names = {
        "A": "L1",
        "B": "L1, squared error, stronger penalty",
        "batchtopk": "BatchTopK, k = true L0",
        "batchtopk half k, sum": "BatchTopK, half that k",
        "batchtopk half k, max": 'BatchTopK, half that k, `score="max"`',
    }
    columns = {
        "precision_chat_delta_norm": "precision of chat-only",
        "recall_chat_delta_norm": "recall",
        "frac_weak_flagged": "weak concepts flagged",
        "frac_decoupled_flagged": "decoupled concepts flagged",
        "precision_chat_verdict": "precision of the verdict",
        "recall_chat_verdict": "recall of the verdict",
    }
    means = frame.groupby("cell")[list(columns)].mean()
    rows = [["crosscoder", *columns.values()]]
    rows += [[name, *(two_decimals(value) for value in means.loc[cell])] for cell, name in names.items()]
    null = frame[frame.world == "null"]
    quiet = null.conclusion.str.startswith("no difference detected")
    seeds = sorted(int(seed) for seed in frame.seed.unique())
    return (
        f"{markdown_table(rows)}\n\nMeans over seeds {seeds[0]} to {seeds[-1]}. In {len(null)} runs on worlds in which "
        f"nothing differs, {null.n_flagged_either_side.sum()} latents were flagged, and {quiet.sum()} of the runs "
        f'concluded "no difference detected". {source}'
    )


def headline() -> str:
    """Three lines of results for the README."""
    frame, _ = load_results("planted_pairs.json")
    l1 = frame[frame.cell == "A"]
    steps, _ = load_results("training_step.json")
    step = steps[(steps.name == "step/base") & (steps.peer == "sae_lens") & (steps.screening == "bfloat16")]
    files, _ = load_results("mutated_files.json")
    return (
        f"- **It finds the right latents.** In a planted world {1 - l1.precision_chat_delta_norm.mean():.0%} of L1's "
        f"chat-only latents are artifacts; the verdict keeps {l1.recall_chat_verdict.mean():.0%} of the real ones at a "
        f"precision of {l1.precision_chat_verdict.mean():.2f}. {hard_headline()}\n"
        f"- **It is fast.** A training step takes {step.ours_ms.iloc[0]:.0f} ms where SAELens's BatchTopK takes "
        f"{step.peer_ms.iloc[0]:.0f} ms (8,192 latents, one CPU thread), with the gradients of the dense step.\n"
        f"- **It survives.** Killed at random moments, runs resume to the same bits. Of {files.n.sum():,} damaged "
        f"files it loaded {files.wrong.sum():,} wrongly."
    )


VARIATIONS = {
    "the standard world": "A",
    "more superposition (d_model 32)": "d_model 32, L1",
    "random instead of spread directions": "random directions, L1",
    "all concepts rare (p 0.002 to 0.008)": "rare concepts, L1",
    "all concepts frequent (p 0.04 to 0.12)": "frequent concepts, L1",
    "chat-only concepts at 0.7 of the size": "weak exclusives, L1",
    "chat-only concepts small and rare (p 0.003)": "rare weak exclusives, L1",
    "chat-only concepts that fire in pairs (a pair counts as one)": "co-occurring exclusives, L1",
    "models of widths 64 and 48": "widths 64 and 48, L1",
    "chat model 50 times louder (a definition: Delta_norm is in raw activations)": "chat 50 times louder, L1",
    "chat model 50 times louder, each model scaled": "chat 50 times louder, L1, scaled",
    "decoders not initialised in pairs": "independent start, L1",
}


def limits() -> str:
    """One line per variation of the world or the training of L1."""
    frame, source = load_results("planted_l1.json")
    columns = {
        "precision_chat_delta_norm": "precision of chat-only",
        "recall_chat_delta_norm": "recall",
        "precision_chat_verdict": "precision of the verdict",
        "recall_chat_verdict": "recall of the verdict",
    }
    means = frame.astype(dict.fromkeys(columns, float)).groupby("cell")[list(columns)].mean()
    rows = [["L1 crosscoder in", *columns.values()]]
    rows += [[name, *(two_decimals(value) for value in means.loc[cell])] for name, cell in VARIATIONS.items()]
    seeds = ", ".join(str(seed) for seed in sorted(frame.seed.unique()))
    return (
        f"{markdown_table(rows)}\n\nMeans over seeds ({seeds}), judged on {frame.evaluation_tokens.iloc[0]:,} tokens. "
        f"BatchTopK in the same worlds is on [How far to trust a verdict](trust-a-verdict.md). {source}"
    )


def tiny_pair() -> str:
    """One line per concept of the built-in pair."""
    frame, source = load_results("tiny_pair.json")
    pair = frame[frame.chat == "tiny-chat"]
    methods = {
        "batchtopk": "BatchTopK crosscoder",
        "l1": "L1 crosscoder",
        "SAE on the stack": "plain SAE on the stack",
        "SAE on the difference": "SAE on the difference",
        "PCA of the difference": "PCA of the difference",
    }
    aurocs = pair.pivot_table(index="concept", columns="crosscoder", values="auroc", aggfunc="median", sort=False)
    batchtopk = pair[pair.crosscoder == "batchtopk"]
    columns = {"oracle": "in base (oracle)", "delta_norm": "Delta_norm", "nu_error": "nu_error"}
    medians = batchtopk.groupby("concept")[list(columns)].median()
    rows = [["concept", *columns.values(), *(f"AUROC, {name}" for name in methods.values())]]
    for concept in dict.fromkeys(pair.concept):
        numbers = [*medians.loc[concept], *(aurocs.loc[concept, name] for name in methods)]
        rows.append([str(concept), *(two_decimals(value) for value in numbers)])
    null = frame[(frame.chat == "tiny-null") & frame.crosscoder.isin(["l1", "batchtopk"])]
    runs = null.drop_duplicates(["crosscoder", "seed"])
    quiet = runs.conclusion.str.startswith("no difference detected").sum()
    correlation = batchtopk.drop_duplicates("seed").spearman_delta_norm.median()
    return (
        f"{markdown_table(rows)}\n\nMedians over {pair.seed.nunique()} seeds. Delta_norm and nu_error are those of "
        f"BatchTopK's latent. Its Delta_norm has a rank correlation of {correlation:.2f} with the oracle. On the base "
        f"model against itself trained longer (`tiny-null`), {quiet} of {len(runs)} runs concluded "
        f'"no difference detected". {source}'
    )


def carriers() -> str:
    """What latents write of each concept of the built-in pair, beside the oracle."""
    frame, source = load_results("tiny_pair_carriers.json")
    pair = frame[frame.chat == "tiny-chat"]
    columns = {
        "oracle": "in base (oracle)",
        "coverage": "coverage",
        "delta_contrast": "delta_contrast",
        "delta_contrast_of_oracle": "the oracle's",
        "share_specific": "share of specific latents",
        "share": "share of the carrier",
    }
    medians = pair.groupby("concept", sort=False)[list(columns)].median()
    rows = [["concept", *columns.values()]]
    rows += [[str(concept), *map(two_decimals, row)] for concept, row in medians.iterrows()]
    off = (pair.delta_contrast - pair.delta_contrast_of_oracle).abs().max()
    null = frame[frame.chat == "tiny-null"].drop_duplicates("seed")
    quiet = null.conclusion.str.startswith("no difference detected").sum()
    return (
        f"{markdown_table(rows)}\n\nBatchTopK, medians over {pair.seed.nunique()} seeds. delta_contrast is within "
        f"{off:.2f} of the oracle's for every concept and seed. On the base model against itself trained longer "
        f'(`tiny-null`), {quiet} of {len(null)} runs concluded "no difference detected". {source}'
    )


def convergence() -> str:
    """One line per training length, width, k and score on the built-in pair."""
    frame, source = load_results("tiny_pair_convergence.json")
    chat_only = frame[frame.kind_of_change == "chat_only"]
    keys = ["varied", "steps", "d_sae", "k", "score"]
    heading = ["varied", "steps", "latents", "k", "score", "FVE"]
    rows = [[*heading, "mean Delta_norm of the five new concepts", "chat_specific latents"]]
    for (varied, steps, d_sae, k, score), group in chat_only.groupby(keys, sort=False):
        row = [str(varied), f"{steps:,}", f"{d_sae:,}", f"{k:g}", str(score), two_decimals(group.fve_pooled.iloc[0])]
        rows.append([*row, two_decimals(group.delta_norm.mean()), str(group.n_chat_specific.iloc[0])])
    empty = [f"{row[1]} steps, {row[2]} latents, k {row[3]}" for row in rows[1:] if row[-1] == "0"]
    return (
        f"{markdown_table(rows)}\n\nThe class is empty at {'; '.join(empty)}, although the difference is there. Do not "
        f"conclude anything from an empty class: train wider, longer, and with a smaller k. {source}"
    )


def intervals() -> str:
    """Coverage of the intervals of nu."""
    frame, source = load_results("intervals.json")
    low, high = frame.coverage.min(), frame.coverage.max()
    return (
        f"The 95 % intervals contain the nu of a million fresh tokens {100 * low:.1f} to {100 * high:.1f} % of the "
        f"time, for both nu, both probes and both crosscoders, over {frame.n_intervals.sum():,} intervals. {source}"
    )


SETUPS = {
    "all": "all latents",
    "template": "chat activations at template tokens",
    "top_nu": "the half of the chat-leaning latents that nu ranks best",
    "bottom_nu": "the other half",
    "random_same_number": "as many random latents",
    "random_same_energy": "random latents of the same energy",
}


def causal() -> str:
    """Share of the KL between the models that patched latents remove, and what ablations do to refusals."""
    frame, source = load_results("causal_tiny_pair.json")
    document = json.loads((RESULTS / "causal_tiny_pair.json").read_text())
    frame = frame[(frame.variant != "add") & (frame.window == "all")]
    by_name = {str(name): group for name, group in frame.groupby("crosscoder")}
    rows = [["patched into the base model", *(f"share of the KL removed, {name}" for name in by_name)]]
    for setup, title in SETUPS.items():
        reductions = [group[group.setup == setup].reduction for group in by_name.values()]
        rows.append([title, *(f"{part.mean():.3f} ({part.min():.3f} to {part.max():.3f})" for part in reductions)])
    nats, n_runs = frame[frame.setup == "none"].kl_nats.mean(), len(document["latents"])
    halves = " and ".join(f"{_n_apart(group)} ({name})" for name, group in by_name.items())
    return (
        f"{markdown_table(rows)}\n\nThe KL is {nats:.2f} nats per token. Means and ranges over {n_runs} "
        f"demos with different seeds. The 95 % intervals of the two halves do not overlap in {halves} of the {n_runs} "
        f"runs.\n\n{_refusals(document, list(by_name))}\n\n{source}"
    )


def _n_apart(group: pd.DataFrame) -> int:
    """Number of runs in which the intervals of the two halves do not overlap."""
    top, bottom = (group[group.setup == setup].set_index("run") for setup in ("top_nu", "bottom_nu"))
    return int((top.reduction_low > bottom.reduction_high).sum())


def _refusals(document: dict[str, dict[str, dict[str, list[int]]]], names: list[str]) -> str:
    frame = pd.DataFrame(document["refusals"])

    def refused(patch: str, answered_by: str) -> str:
        runs = frame[(frame.patch == patch) & (frame.answered_by == answered_by)]
        shares = {name: runs[runs.crosscoder == name].frac_refused_harmful for name in names}
        return " and ".join(f"{', '.join(f'{share:.0%}' for share in shares[name])} ({name})" for name in names)

    runs = document["latents"].values()
    without = " and ".join(f"{sum(not run[name]['refusal'] for run in runs)} ({name})" for name in names)
    reader = "chat reads base half"
    return (
        f"Harmful requests that the chat model still refuses word by word, by run: with the refusal latents ablated "
        f"{refused('refusal ablated', 'chat')}; with random latents ablated {refused('random ablated', 'chat')}. In "
        f"{without} runs the crosscoder has no chat-leaning latent for refusals, so nothing was ablated. Adding the "
        f"refusal latents to the base activation does not switch refusals on: {refused('refusal added', reader)}, "
        f"because the base model's own plan is still in it. Replacing all latents does: "
        f"{refused('all replaced', reader)}."
    )


def recipes() -> str:
    """Verdicts of plain BatchTopK, of a partition and after polishing, in planted worlds."""
    frame, source = load_results("planted_recipes.json")
    return _verdicts(frame, "world, recipe", source)


def architectures() -> str:
    """Verdicts of the architectures that are given a number of active latents, in planted worlds."""
    frame, source = load_results("planted_architectures.json")
    return _verdicts(frame, "world, architecture", source)


def shared_latents() -> str:
    """Verdicts with designated shared latents and a loss on the difference, in planted worlds."""
    frame, source = load_results("shared_latents.json")
    return _verdicts(frame, "world, recipe", source)


def _verdicts(frame: pd.DataFrame, heading: str, source: str) -> str:
    """Precision and recall of the verdicts of each side, a row per cell."""
    table = [[heading, "chat: precision / recall", "base: precision / recall", "verdicts, chat and base"]]
    table += [
        [row["cell"], *_sides(row), f"{row['n_chat_verdict']}, {row['n_base_verdict']}"]
        for row in frame.to_dict("records")
    ]
    seeds = ", ".join(str(seed) for seed in sorted(frame.seed.unique()))
    return f"{markdown_table(table)}\n\nSeeds: {seeds}. {source}"


def _sides(row: Mapping[Any, Any]) -> list[str]:
    return [
        f"{two_decimals(row[f'precision_{side}_verdict'])} / {two_decimals(row[f'recall_{side}_verdict'])}"
        for side in ("chat", "base")
    ]


def scores() -> str:
    """Verdicts of plain BatchTopK by its score, in the hard worlds."""
    frame, source = load_results("planted_scores.json")
    table = [["world", *(f"{side}, `{score}`" for score in ("sum", "max") for side in ("chat", "base"))]]
    for world, rows in frame.groupby(frame.cell.str.replace(r", (sum|max)", "", regex=True), sort=False):
        by_score = {row["cell"].split(", ")[1]: _sides(row) for row in rows.to_dict("records")}
        table.append([str(world), *by_score["sum"], *by_score["max"]])
    seeds = ", ".join(str(seed) for seed in sorted(frame.seed.unique()))
    return f"{markdown_table(table)}\n\nPrecision / recall of the verdicts. Seeds: {seeds}. {source}"
