"""The table of speed: one line per measured variant, with the ratio to each peer."""

from typing import Any

import pandas as pd
from docs_results import load_results, markdown_table

FILES = ("training_step.json", "latent_scaling.json", "activation_path.json", "patching.json")
WORKLOADS = {
    "step/base": "training step, 2 x 256 wide, 8,192 latents, k 32, batch 1,024",
    "step/dead5": "the same with 5 % dead latents",
    "step/large": "training step, 2 x 512 wide, 16,384 latents, k 64",
    "step/tiny": "training step, 2 x 32 wide, 512 latents, k 16, batch 256",
    "step/memory": "memory of the first of these steps",
    "train/end_to_end": "whole training, harvesting included",
    "train/end_to_end tiny pair": "whole training on the built-in pair",
    "scaling/default": "Latent Scaling, 4,096 latents",
    "scaling/all": "Latent Scaling of all 2,048 latents",
    "harvest": "harvesting both models",
    "buffer/64k": "shuffling buffer of 65,536 tokens",
    "cache/bf16": "activation cache on disk",
    "patch/L6of12": "32 interventions in layer 6 of 12",
    "patch/L6of12/shared_prefix": "32 interventions on prompts that share their beginning",
}
VARIANTS = {
    "ours": "float32",
    "ours, bfloat16": "bfloat16",
    "never": "checksums not read",
    "on_first_read": "checksums read",
}


def speed() -> str:
    """Time per workload, ours beside peers, with the ratios under both allocators."""
    rows = [["workload", "this package", "encoder product alone", "SAELens", "another peer"]]
    sources: list[str] = []
    for name in FILES:
        frame, source = load_results(name)
        sources.append(source)
        frame = frame[frame.status.eq("measured") & frame.name.isin(list(WORKLOADS))]
        frame["title"] = [WORKLOADS[row["name"]] + _variant(row) for row in frame.to_dict(orient="records")]
        rows += [_row(str(title), group) for title, group in frame.groupby("title", sort=False)]
    return "\n\n".join([markdown_table(rows), *sources])


def centred() -> str:
    """What the centred nu add to a diagnosis: time, as a ratio, and memory."""
    frame, source = load_results("centred_scaling.json")
    rows = [["latents", "diagnosis without", "with", "ratio, under two allocators", "memory added"]]
    for d_sae, group in frame.groupby("d_sae"):
        first = group.iloc[0]
        ratios = " / ".join(f"{ratio:.2f}" for ratio in group.ratio)
        times = [f"{first[f'{kind}_ms'] / 1000:.1f} s" for kind in ("without", "with")]
        rows.append([f"{d_sae:,}", *times, ratios, f"{first.added_mib:.0f} MiB"])
    return "\n\n".join([markdown_table(rows), source])


def waits() -> str:
    """CPU times of what people wait for, before and now, with the reason where a target was missed."""
    frame, source = load_results("waits.json")
    rows = [["what", "before, or a peer", "now", "ratio", "target", "why not"]]
    for row in frame.to_dict(orient="records"):
        before = row["peer_ms"] if isinstance(row.get("peer"), str) else row["today_ms"]
        why = "" if row["met"] else row["why"]
        times = [_amount(milliseconds, "ms") for milliseconds in (before, row["ours_ms"])]
        rows.append([row["title"], *times, f"{row['ratio']:.2g} x", row["target"].replace("ratio >= ", ""), why])
    return "\n\n".join([markdown_table(rows), source])


def no_worse() -> str:
    """The least ratios of the workloads of all benchmarks to an earlier build, with the reason where one is worse."""
    frame, source = load_results("no_worse.json")
    speed, figures = frame[frame.unit.notna()], frame[frame.unit.isna()]
    least = speed.loc[speed.ratio.idxmin()]
    worse = [f"{row['name']} has {row['ratio']:.2f}: {row['why']}" for _, row in frame[~frame.met].iterrows()]
    median, most = speed.ratio.median(), speed.ratio.max()
    text = (
        f"{len(speed)} workloads of these benchmarks, run in turn with the earlier build, are {least.ratio:.2f} "
        f"({least['name']}) to {most:.2f} times as fast as there, in the median {median:.2f}, in CPU time. "
        f"{len(figures)} figures of planted worlds (variance explained, precision and recall of verdicts) are "
        f"{figures.ratio.min():.3f} to {figures.ratio.max():.3f} times as high."
    )
    return " ".join([text, *worse, source])


def polish_cost() -> str:
    """What polish costs, in training steps of the same size."""
    frame, source = load_results("polish_cost.json")
    rows = [["dictionary", "a training step", "a round of polish", "8 rounds, in steps"]]
    for row in frame.to_dict(orient="records"):
        size = f"2 x {row['d_model']}, {row['d_sae']:,} latents, k {row['k']}, batch {row['batch']:,}"
        times = [f"{row['step_ms']:,.0f} ms", f"{row['round_ms'] / 1000:,.1f} s"]
        rows.append([size, *times, f"{round(row['rounds_in_steps'], -2):,.0f}"])
    return "\n\n".join([markdown_table(rows), f"One core, 12,288 tokens per round. {source}"])


def layers() -> str:
    """Two hooks in one crosscoder beside one crosscoder per hook, and the layers named on planted concepts."""
    frame, source = load_results("layers.json")
    step, harvest, memory = (frame[frame.name == name].iloc[0] for name in ("step", "harvest", "memory"))
    planted = frame[frame.name == "planted"].groupby("causality", sort=False)
    right = {name: (group.frac_found.mean(), group.frac_right.mean(), len(group)) for name, group in planted}
    weak, polished, acausal = right["weak"], right["weak, polished"], right["acausal"]
    return (
        "Beside two crosscoders of as many latents at one hook each, which have as many parameters together: "
        f"harvesting is {harvest.ratio:.2f} times as fast, because both hooks are read in one pass, a training step "
        f"{step.ratio:.2f} times, and the step takes {memory.ours_mib:.0f} MiB instead of {memory.peer_mib:.0f}. Of 64 "
        f"planted concepts that start at one of the layers, a weakly causal crosscoder finds {weak[0]:.2f}, and names "
        f"the layer of {weak[1]:.2f} of those right; polished, it finds {polished[0]:.2f}, and {polished[1]:.2f} of "
        f"those are right; an acausal one finds {acausal[0]:.2f} and is right on "
        f"{acausal[1]:.2f} (means of {weak[2]} seeds). {source}"
    )


def _variant(row: dict[str, Any]) -> str:
    """Name what distinguishes a row from others of the same workload."""
    words = [row.get("screening"), row.get("dtype"), row.get("variant"), row.get("checksums_read")]
    words += [f"{row['chunk_tokens']:,.0f} tokens at a time"] if row.get("chunk_tokens", 0) > 0 else []
    known = [VARIANTS.get(word, word) for word in words if isinstance(word, str)]
    return f" ({', '.join(known)})" if known else ""


def _row(title: str, group: pd.DataFrame) -> list[str]:
    """Format one line: a peer's cell is its time and its ratio under glibc's default and a retaining allocator."""
    unit = "mib" if group.name.iloc[0] == "step/memory" else "ms"
    precision = group.screening.iloc[0] if "screening" in group else None
    cells = {peer: _peer_cell(group[group.peer == peer], unit) for peer in dict.fromkeys(group.peer)}
    more = {peer: cell for peer, cell in cells.items() if not peer.startswith("floor") and "sae_lens" not in peer}
    return [
        title,
        _amount(group[f"ours_{unit}"].iloc[0], unit),
        cells.get(f"floor ({precision} product)", ""),
        next((cell for peer, cell in cells.items() if "sae_lens" in peer), ""),
        "; ".join(f"{peer} {cell}" for peer, cell in more.items()),
    ]


def _peer_cell(rows: pd.DataFrame, unit: str) -> str:
    is_floor = rows.peer.iloc[0].startswith("floor")
    ratios = " / ".join(f"{ratio:.1f}" for ratio in (rows.times_the_floor if is_floor else rows.ratio))
    amount = _amount(rows[f"peer_{unit}"].iloc[0], unit)
    return f"{amount} (our whole step takes {ratios} times as long)" if is_floor else f"{amount}, {ratios} x"


def _amount(value: float, unit: str) -> str:
    if unit == "mib":
        return f"{value:.0f} MiB"
    return f"{value:.1f} ms" if value < 10 else f"{value:,.0f} ms"
