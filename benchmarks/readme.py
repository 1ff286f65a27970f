"""Writes every measured number of the README from benchmarks/results, and draws its pictures with headless Chromium.

python benchmarks/readme.py
sae-lens-crosscoder demo --output-path demo && python benchmarks/readme.py --demo demo
"""

import argparse
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.report import delta_norm_histogram, nu_scatter

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks/results"
README = ROOT / "README.md"
DEMO_PICTURE, CLAIMS_PICTURE = ROOT / "examples/demo_report.png", RESULTS / "planted_claims.png"
SPEED_PICTURE = RESULTS / "training_step.png"
WIDTH = 1100
WORKLOADS = {
    "step/base": "training step, 2 x 256 wide, 8,192 latents, k 32, batch 1,024",
    "step/dead5": "the same with 5 % dead latents",
    "step/large": "training step, 2 x 512 wide, 16,384 latents, k 64",
    "step/tiny": "training step, 2 x 32 wide, 512 latents, k 16, batch 256",
    "step/memory": "memory of the first of these steps",
    "train/end_to_end": "whole training, harvesting included",
    "train/end_to_end tiny pair": "the same on the built-in pair",
    "scaling/default": "Latent Scaling, 4,096 latents",
    "scaling/all": "Latent Scaling of all 2,048 latents",
    "harvest": "harvesting both models",
    "buffer/64k": "shuffling buffer of 65,536 tokens",
    "cache/bf16": "activation cache on disk",
    "patch/L6of12": "32 interventions in layer 6 of 12",
    "patch/L6of12/shared_prefix": "the same on prompts that share their beginning",
}


def read(name: str) -> tuple[pd.DataFrame, str]:
    """The rows of a results file, and how its README passage says where they come from."""
    document = json.loads((RESULTS / name).read_text())
    source = f"`{document['command']}` measures this and writes [benchmarks/results/{name}](benchmarks/results/{name})."
    return pd.DataFrame(document["rows"]), source


def markdown(rows: list[list[str]]) -> str:
    """A table, its first row the heading."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def number(value: float) -> str:
    return "none" if value != value else f"{value:.2f}"


def claims() -> str:
    """The paper's claims, means over seeds."""
    frame, source = read("planted_pairs.json")
    names = {
        "A": "L1",
        "B": "L1, squared error, stronger penalty",
        "batchtopk": "BatchTopK, k = true L0",
        "batchtopk half k, sum": "BatchTopK, half that k",
        "batchtopk half k, max": 'BatchTopK, half that k, `score="max"`',
    }
    columns = {
        "precision": "precision of chat-only",
        "recall": "recall",
        "frac_weak_flagged": "weak concepts flagged",
        "frac_decoupled_flagged": "decoupled concepts flagged",
        "precision_chat_verdict": "precision of the verdict",
        "recall_chat_verdict": "recall of the verdict",
    }
    means = frame.groupby("cell")[list(columns)].mean()
    rows = [["crosscoder", *columns.values()]]
    rows += [[shown, *(number(value) for value in means.loc[cell])] for cell, shown in names.items()]
    null = frame[frame.world == "null"]
    quiet = null.conclusion.str.startswith("no difference detected")
    seeds = sorted(int(seed) for seed in frame.seed.unique())
    return (
        f"{markdown(rows)}\n\nMeans over seeds {seeds[0]} to {seeds[-1]}. In {len(null)} runs on worlds where nothing "
        f"differs, {null.n_flagged_either_side.sum()} latents were flagged, and {quiet.sum()} of the runs end with "
        f'"no difference detected". {source}'
    )


def bends() -> str:
    """Where both bend: one line per variation of the world or the training."""
    frame, source = read("planted_full.json")
    frame = frame.set_index("cell")
    variations = {
        "the standard world": ("A", "batchtopk"),
        "concepts superposed more (d_model 32)": "d_model 32",
        "random instead of spread directions": "random directions",
        "all concepts rare (p 0.002 to 0.008)": "rare concepts",
        "all concepts frequent (p 0.04 to 0.12)": "frequent concepts",
        "chat-only concepts at 0.7 of the size": "weak exclusives",
        "and rare as well (p 0.003)": "rare weak exclusives",
        "chat-only concepts that fire in pairs": "co-occurring exclusives",
        "models of widths 64 and 48": "widths 64 and 48",
        "chat model 50 times louder": "chat 50 times louder",
        "the same, each model scaled": ("chat 50 times louder, L1, scaled", "chat 50 times louder, batchtopk, scaled"),
        "decoders not started in pairs": ("independent start, L1", "independent start, batchtopk"),
    }
    rows = [
        [
            "what varies",
            "L1 precision",
            "recall",
            "BatchTopK precision",
            "recall",
            "of its verdict: precision",
            "recall",
        ]
    ]
    for shown, cells in variations.items():
        l1, batchtopk = (f"{cells}, L1", f"{cells}, batchtopk") if isinstance(cells, str) else cells
        numbers = [frame.loc[cell, column] for cell in (l1, batchtopk) for column in ("precision", "recall")]
        numbers += [frame.loc[batchtopk, f"{column}_chat_verdict"] for column in ("precision", "recall")]
        rows.append([shown, *(number(value) for value in numbers)])
    return f"{markdown(rows)}\n\nOne seed. {source}"


def tiny_pair() -> str:
    """Concept by concept on the built-in pair."""
    frame, source = read("tiny_pair.json")
    pair = frame[frame.chat == "tiny-chat"]
    shown = {
        "batchtopk": "BatchTopK crosscoder",
        "l1": "L1 crosscoder",
        "SAE on the stack": "plain SAE on the stack",
        "SAE on the difference": "SAE on the difference",
        "PCA of the difference": "PCA of the difference",
    }
    aurocs = pair.pivot_table(index="concept", columns="crosscoder", values="auroc", aggfunc="median", sort=False)
    of_crosscoder = pair[pair.crosscoder == "batchtopk"].groupby("concept")
    columns = {"oracle": "in base (oracle)", "delta_norm": "Delta_norm", "nu_error": "nu_error"}
    medians = of_crosscoder[list(columns)].median()
    rows = [["concept", columns["oracle"], "Delta_norm", "nu_error", *(f"AUROC, {name}" for name in shown.values())]]
    for concept in dict.fromkeys(pair.concept):
        numbers = [*medians.loc[concept], *(aurocs.loc[concept, name] for name in shown)]
        rows.append([str(concept), *(number(value) for value in numbers)])
    null = frame[(frame.chat == "tiny-null") & frame.crosscoder.isin(["l1", "batchtopk"])]
    runs = null.drop_duplicates(["crosscoder", "seed"])
    quiet = runs.conclusion.str.startswith("no difference detected").sum()
    correlation = pair[pair.crosscoder == "batchtopk"].drop_duplicates("seed").spearman_delta_norm.median()
    return (
        f"{markdown(rows)}\n\nMedians over {pair.seed.nunique()} seeds; Delta_norm and nu_error are of BatchTopK's "
        f"latent, whose Delta_norm has a rank correlation of {correlation:.2f} with the oracle. On the base "
        f"model against itself trained longer (`tiny-null`), {quiet} of {len(runs)} runs end with "
        f'"no difference detected". {source}'
    )


def convergence() -> str:
    """How long and how wide, before Delta_norm means what it says."""
    frame, source = read("tiny_pair_convergence.json")
    chat_only = frame[frame.kind_of_change == "chat_only"]
    keys = ["varied", "steps", "d_sae", "k", "score"]
    rows = [
        ["varied", "steps", "latents", "k", "score", "FVE", "mean Delta_norm of the five new concepts", "chat_specific"]
    ]
    for (varied, steps, d_sae, k, score), group in chat_only.groupby(keys, sort=False):
        row = [str(varied), f"{steps:,}", f"{d_sae:,}", f"{k:g}", str(score), number(group.fve_pooled.iloc[0])]
        rows.append([*row, number(group.delta_norm.mean()), str(group.n_chat_specific.iloc[0])])
    empty = [f"{row[1]} steps, {row[2]} latents and k {row[3]}" for row in rows[1:] if row[-1] == "0"]
    return (
        f"{markdown(rows)}\n\nSo nothing could be concluded from an empty class at {'; at '.join(empty)}: train "
        f"wider than that, longer, and with a smaller k. {source}"
    )


def intervals() -> str:
    """How often the intervals hold the truth."""
    frame, source = read("intervals.json")
    low, high = frame.coverage.min(), frame.coverage.max()
    return (
        f"The 95 % intervals hold the nu of a million fresh tokens {100 * low:.1f} to {100 * high:.1f} % of the "
        f"time, for either nu, either probe and both crosscoders, over {frame.n_intervals.sum():,} intervals. {source}"
    )


def speed() -> str:
    """Ours beside what a user would pick today: a line per measured variant, with both allocators' ratios."""
    rows = [["what", "ours", "the encoder's product alone", "SAELens", "another peer"]]
    commands: list[str] = []
    for name in ("training_step.json", "latent_scaling.json", "activation_path.json", "patching.json"):
        frame, source = read(name)
        commands.append(source)
        frame = frame[frame.status.eq("measured") & frame.name.isin(list(WORKLOADS))]
        frame["shown"] = [WORKLOADS[row["name"]] + _variant(row) for row in frame.to_dict(orient="records")]
        rows += [_speed_row(str(shown), group) for shown, group in frame.groupby("shown", sort=False)]
    return "\n\n".join([markdown(rows), *commands])


def _variant(row: dict[str, Any]) -> str:
    """What tells a row from others of the same workload."""
    words = [row.get("screening"), row.get("dtype"), row.get("variant"), row.get("checksums_read")]
    words += [f"{row['chunk_tokens']:,.0f} tokens at a time"] if row.get("chunk_tokens", 0) > 0 else []
    said = {"ours": "float32", "ours, bfloat16": "bfloat16", "never": "checksums not read", "on_first_read": "all read"}
    known = [said.get(word, word) for word in words if isinstance(word, str)]
    return f" ({', '.join(known)})" if known else ""


def _speed_row(shown: str, group: pd.DataFrame) -> list[str]:
    """One line; a peer's cell is its time, and the ratio under glibc's default and under a retaining allocator."""
    unit = "mib" if group.name.iloc[0] == "step/memory" else "ms"
    peers = list(dict.fromkeys(group.peer))
    precision = group.screening.iloc[0] if "screening" in group else None
    cells = {peer: _peer_cell(group[group.peer == peer], unit) for peer in peers}
    others = {peer: cell for peer, cell in cells.items() if not peer.startswith("floor") and "sae_lens" not in peer}
    return [
        shown,
        _amount(group[f"ours_{unit}"].iloc[0], unit),
        cells.get(f"floor ({precision} product)", ""),
        next((cell for peer, cell in cells.items() if "sae_lens" in peer), ""),
        "; ".join(f"{peer} {cell}" for peer, cell in others.items()),
    ]


def _peer_cell(rows: pd.DataFrame, unit: str) -> str:
    is_floor = rows.peer.iloc[0].startswith("floor")
    ratios = " / ".join(f"{ratio:.1f}" for ratio in (rows.times_the_floor if is_floor else rows.ratio))
    missed = f", **target {rows.target.iloc[0].split()[-1]} missed**" if (rows.met == False).any() else ""  # noqa: E712
    relation = "of which ours is " if is_floor else ""
    return f"{_amount(rows[f'peer_{unit}'].iloc[0], unit)}, {relation}{ratios} x{missed}"


def _amount(value: float, unit: str) -> str:
    if unit == "mib":
        return f"{value:.0f} MiB"
    return f"{value:.1f} ms" if value < 10 else f"{value:,.0f} ms"


def causal() -> str:
    """How much of the difference between the models the latents of the built-in pair's crosscoders carry."""
    frame, source = read("causal_tiny_pair.json")
    document = json.loads((RESULTS / "causal_tiny_pair.json").read_text())
    refusals = pd.DataFrame(document["refusals"])
    frame = frame[(frame.variant != "add") & (frame.window == "all")]
    setups = {
        "all": "all latents",
        "template": "chat activations at template tokens",
        "top_nu": "the half of the chat-leaning latents that nu ranks best",
        "bottom_nu": "the other half",
        "random_same_number": "as many random latents",
        "random_same_energy": "random latents of the same energy",
    }
    of_name = {name: group for name, group in frame.groupby("crosscoder")}
    rows = [["patched into the base model", *(f"share of the KL removed, {name}" for name in of_name)]]
    for setup, shown in setups.items():
        found = [group[group.setup == setup].reduction for group in of_name.values()]
        rows.append([shown, *(f"{each.mean():.3f} ({each.min():.3f} to {each.max():.3f})" for each in found)])
    none = frame[frame.setup == "none"].kl_nats

    def apart(group: pd.DataFrame) -> int:
        top, bottom = (group[group.setup == setup].set_index("run") for setup in ("top_nu", "bottom_nu"))
        return int((top.reduction_low > bottom.reduction_high).sum())

    def refused(patch: str, answered_by: str) -> str:
        chosen = refusals[(refusals.patch == patch) & (refusals.answered_by == answered_by)]
        shares = {name: chosen[chosen.crosscoder == name].frac_refused_harmful for name in of_name}
        return " and ".join(f"{', '.join(f'{share:.0%}' for share in shares[name])} ({name})" for name in of_name)

    n_runs, runs = len(document["latents"]), document["latents"].values()
    without = " and ".join(f"{sum(not run[name]['refusal'] for run in runs)} ({name})" for name in of_name)
    halves = " and ".join(f"{apart(group)} ({name})" for name, group in of_name.items())
    return (
        f"{markdown(rows)}\n\nOf {none.mean():.2f} nats per token; means and ranges of {n_runs} demos with different "
        f"seeds. The 95 % intervals of the two halves do not overlap in {halves} of the {n_runs}. Harmful requests "
        f"that the chat model refuses word by word once its refusal latents are ablated, by run: "
        f"{refused('refusal ablated', 'chat')}; random latents: {refused('random ablated', 'chat')}. In {without} of "
        f"the runs the crosscoder has no chat-leaning latent for refusals, so that nothing was ablated. Adding the "
        f"refusal latents to the base activation does not switch refusals on: "
        f"{refused('refusal added', 'chat reads base half')}, because the plan for another answer is still in it; with "
        f"all latents replaced they are on: {refused('all replaced', 'chat reads base half')}. {source}"
    )


def processes() -> str:
    """What several processes train, beside what one trains."""
    frame, source = read("distributed.json")
    deaths = [is_equal for row in frame.resumed_equal_after_death for is_equal in row]
    cards = frame.score_card_unchanged.dropna()
    of_weights, of_gradients, of_fve = (
        f"{frame[name].max():.0e}"
        for name in ("max_weight_difference_float64", "first_gradient_difference_float32", "fve_difference")
    )
    return (
        f"With {' and '.join(map(str, sorted(frame.processes.unique())))} processes, the batch divided, the latents, "
        f"or both, for L1 and BatchTopK: after 200 steps in float64 the weights are one process's to {of_weights}; in "
        f"float32 the first gradients are to {of_gradients} of the largest, and FVE to {of_fve}. {cards.sum():.0f} of "
        f"{len(cards)} score cards of the standard planted world are unchanged. Saved by all, gone on with by half of "
        f"them and then by one: equal in {frame.resumed_equal.sum()} of {len(frame)} layouts. A process killed at a "
        f"random moment, and the run resumed: equal {sum(deaths)} of {len(deaths)} times. {source}"
    )


def faults() -> str:
    """What kills, time and damaged files do to runs."""
    frame, source = read("faults.json")
    files, of_files = read("mutated_files.json")
    trained, cached = frame[frame.name == "train"], frame[frame.name == "cache"]
    soaked = frame[frame.name.str.startswith("soak/")]
    growth = " and ".join(f"{row.growth_mib:.1f} MiB (of {row.warm_up_mib:,.0f})" for row in soaked.itertuples())
    return (
        f"Training killed (SIGKILL) at {len(trained)} random moments, {trained.was_writing.sum():.0f} of them while a "
        f"checkpoint was written, and resumed: {trained.equal.sum():.0f} of {len(trained)} end with the bits of the "
        f"unbroken run, {trained.n_unreadable.sum():.0f} unreadable checkpoints. The cache's writer killed "
        f"{len(cached)} times and started again: {cached.equal.sum():.0f} equal caches. In {soaked.minutes.min():.0f} "
        f"minutes of training and of caching, resident memory rose by {growth} over that of the first "
        f"{soaked.warm_up_minutes.max():.0f}. {source}\n\n{files.n.sum():,} truncated, bit-flipped and otherwise "
        f"mutated files through every loader: {files.refused.sum():,} refused by name, {files.loaded_right.sum():,} "
        f"loaded right, {files.wrong.sum():,} wrong, {files.crashed.sum():,} crashes. {of_files}"
    )


PASSAGES: Mapping[str, Callable[[], str]] = {
    "claims": claims,
    "bends": bends,
    "tiny pair": tiny_pair,
    "convergence": convergence,
    "intervals": intervals,
    "speed": speed,
    "causal": causal,
    "processes": processes,
    "faults": faults,
}


def rewritten(text: str) -> str:
    """The README with every `<!-- measured: NAME -->` passage made anew."""

    def passage(found: re.Match[str]) -> str:
        return f"<!-- measured: {found[1]} -->\n{PASSAGES[found[1]]()}\n<!-- end -->"

    return re.sub(r"<!-- measured: ([\w ]+) -->\n.*?<!-- end -->", passage, text, flags=re.DOTALL)


def claims_figure() -> Any:
    """Wrong chat-only latents, and recall, against how much is explained: over mu, over k, for every score."""
    frame, _ = read("planted_full.json")
    frame = frame[frame.world == "A"]
    frame = frame.assign(
        n_wrong=(frame.n_flagged * (1 - frame.precision)).fillna(0), setting=frame.mu.fillna(frame.k / frame.true_l0)
    )
    series = {
        "L1, summed norms": (frame.cell.isin(["mu", "A"]), "#d9601a", "circle"),
        "L1, squared error": (frame.cell.isin(["mu, squared", "B"]), "#c9a227", "square"),
        "L1, stacked norm": (frame.cell == "mu, l2", "#8a5fb8", "diamond"),
        "BatchTopK, sum": (frame.cell == "k, sum", "#2f6fb5", "circle"),
        "BatchTopK, max": (frame.cell == "k, max", "#1b9a83", "square"),
        "BatchTopK, l2": (frame.cell == "k, l2", "#7aa6d6", "diamond"),
    }
    panels = {"n_wrong": "wrong latents flagged chat-only", "recall": "recall of chat-only concepts"}
    figure = make_subplots(rows=1, cols=2, subplot_titles=list(panels.values()), horizontal_spacing=0.09)
    for col, column in enumerate(panels, start=1):
        for name, (chosen, colour, symbol) in series.items():
            points = frame[chosen].sort_values("setting")
            unit = "μ" if name.startswith("L1") else "k/L0"
            labels = [f"{unit} {value:.2g}" for value in points.setting]
            if name in ("BatchTopK, max", "BatchTopK, l2"):  # whose ends lie on those of the summed norms
                labels = [""] * len(labels)
            figure.add_trace(
                go.Scatter(
                    x=1 - points.fve_pooled, y=points[column], name=name, legendgroup=name, showlegend=col == 1,
                    mode="lines+markers+text" if col == 1 else "lines+markers",
                    text=[labels[0], *[""] * (len(labels) - 2), labels[-1]],
                    textposition="top center", textfont={"size": 10, "color": colour},
                    line={"color": colour, "dash": "solid" if unit == "μ" else "dot"},
                    marker={"symbol": symbol, "size": 9},
                ),
                row=1,
                col=col,
            )  # fmt: skip
    # Logarithmic in what is left unexplained, because everything good lies between 0.9 and 0.97.
    ticks = [0.5, 0.6, 0.7, 0.8, 0.9, 0.95]
    figure.update_xaxes(
        title="fraction of variance explained", type="log", autorange="reversed", tickvals=[1 - t for t in ticks],
        ticktext=[f"{t:g}" for t in ticks], gridcolor="#e4e7eb", linecolor="#8d949e", zeroline=False,
    )  # fmt: skip
    figure.update_yaxes(gridcolor="#e4e7eb", zeroline=False)
    figure.update_yaxes(range=[-2, 42], row=1, col=1)
    figure.update_yaxes(range=[-0.05, 1.12], row=1, col=2)
    figure.update_layout(
        template="none", width=WIDTH, height=440, margin={"l": 50, "r": 20, "t": 50, "b": 110},
        legend={"orientation": "h", "y": -0.22, "x": 0.5, "xanchor": "center"},
        font={"family": "system-ui, sans-serif", "size": 13, "color": "#24292f"},
    )  # fmt: skip
    return figure


def speed_figure() -> Any:
    """Time of a training step against the number of latents, and against L0."""
    frame, _ = read("training_step_curve.json")
    series = {
        "dictionary_learning": ("dictionary_learning", "bfloat16", "peer_ms", "#8a5fb8", "diamond"),
        "SAELens": ("sae_lens", "bfloat16", "peer_ms", "#d9601a", "circle"),
        "ours, screening in float32": ("sae_lens", "float32", "ours_ms", "#7aa6d6", "square"),
        "ours, screening in bfloat16": ("sae_lens", "bfloat16", "ours_ms", "#2f6fb5", "circle"),
        "the encoder's product alone, float32": ("floor (float32 product)", "float32", "peer_ms", "#8d949e", "x"),
    }
    panels = {"d_sae": "k 32", "k": "8,192 latents"}
    figure = make_subplots(rows=1, cols=2, subplot_titles=list(panels.values()), horizontal_spacing=0.09)
    for col, column in enumerate(panels, start=1):
        of_panel = frame[frame.name.str.startswith(f"curve/{column}=")]
        for name, (peer, screening, what, colour, symbol) in series.items():
            points = of_panel[(of_panel.peer == peer) & (of_panel.screening == screening)].sort_values(column)
            figure.add_trace(
                go.Scatter(
                    x=points[column], y=points[what], name=name, legendgroup=name, showlegend=col == 1,
                    mode="lines+markers", line={"color": colour}, marker={"symbol": symbol, "size": 9},
                ),
                row=1,
                col=col,
            )  # fmt: skip
        ticks = sorted(of_panel[column].unique())
        figure.update_xaxes(
            title={"d_sae": "latents", "k": "k, active latents per token"}[column], type="log", tickvals=ticks,
            ticktext=[f"{tick:,.0f}" for tick in ticks], gridcolor="#e4e7eb", row=1, col=col,
        )  # fmt: skip
    figure.update_yaxes(title="ms per step", type="log", gridcolor="#e4e7eb", dtick=1)
    figure.update_layout(
        template="none", width=WIDTH, height=440, margin={"l": 60, "r": 20, "t": 50, "b": 110},
        legend={"orientation": "h", "y": -0.22, "x": 0.5, "xanchor": "center"},
        font={"family": "system-ui, sans-serif", "size": 13, "color": "#24292f"},
    )  # fmt: skip
    return figure


def demo_figures(folder: str) -> list[Any]:
    tables = {name: slc.read_latents(Path(folder, name)) for name in ("l1", "batchtopk")}
    return [
        delta_norm_histogram(tables).update_layout(height=520, width=WIDTH),
        nu_scatter(tables).update_layout(height=500, width=WIDTH),
    ]


def draw(figures: list[Any], output: Path) -> None:
    """One picture of the figures, below each other."""
    chromium = shutil.which("chromium")
    if chromium is None:
        raise SystemExit("There is no chromium on PATH, which draws the pictures.")
    parts = [
        figure.to_html(full_html=False, include_plotlyjs=index == 0, config={"displayModeBar": False})
        for index, figure in enumerate(figures)
    ]
    height = sum(figure.layout.height for figure in figures)
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder, "picture.html")
        page.write_text(f"<meta charset=utf-8><body style='margin:0;background:white'>{''.join(parts)}")
        command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        command += ["--hide-scrollbars", f"--user-data-dir={folder}/profile", f"--window-size={WIDTH},{height}"]
        command += ["--virtual-time-budget=8000", f"--screenshot={output.resolve()}", page.as_uri()]
        subprocess.run(command, check=True, capture_output=True)
    print(output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", help="a finished demo's folder, to draw its picture as well")
    args = parser.parse_args()
    README.write_text(rewritten(README.read_text()))
    print(README)
    draw([claims_figure()], CLAIMS_PICTURE)
    draw([speed_figure()], SPEED_PICTURE)
    if args.demo is not None:
        draw(demo_figures(args.demo), DEMO_PICTURE)


if __name__ == "__main__":
    main()
