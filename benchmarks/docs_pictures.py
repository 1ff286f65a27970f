"""Draws the pictures of the documentation with headless Chromium.

python benchmarks/docs_pictures.py
sae-lens-crosscoder demo --output-path demo && python benchmarks/docs_pictures.py --demo demo
"""

import argparse
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from docs_results import ROOT, load_results
from plotly.subplots import make_subplots

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.report import delta_norm_histogram, nu_scatter

IMAGES = ROOT / "docs/images"
WIDTH = 1100


def claims_figure() -> Any:
    """Plot wrong chat-only latents and recall against variance explained, over mu and k, for every score."""
    frame, _ = load_results("planted_full.json")
    frame = frame[frame.world == "A"]
    frame = frame.assign(
        n_wrong=(frame.n_flagged * (1 - frame.precision_chat_delta_norm)).fillna(0),
        setting=frame.mu.fillna(frame.k / frame.true_l0),
    )
    series = {
        "L1, summed norms": (frame.cell.isin(["mu", "A"]), "#d9601a", "circle"),
        "L1, squared error": (frame.cell.isin(["mu, squared", "B"]), "#c9a227", "square"),
        "L1, stacked norm": (frame.cell == "mu, l2", "#8a5fb8", "diamond"),
        "BatchTopK, sum": (frame.cell == "k, sum", "#2f6fb5", "circle"),
        "BatchTopK, max": (frame.cell == "k, max", "#1b9a83", "square"),
        "BatchTopK, l2": (frame.cell == "k, l2", "#7aa6d6", "diamond"),
    }
    panels = {"n_wrong": "wrong latents flagged chat-only", "recall_chat_delta_norm": "recall of chat-only concepts"}
    figure = make_subplots(rows=1, cols=2, subplot_titles=list(panels.values()), horizontal_spacing=0.09)
    for col, column in enumerate(panels, start=1):
        for name, (rows, colour, symbol) in series.items():
            points = frame[rows].sort_values("setting")
            unit = "μ" if name.startswith("L1") else "k/L0"
            labels = [f"{unit} {value:.2g}" for value in points.setting]
            if name in ("BatchTopK, max", "BatchTopK, l2"):  # their ends lie on those of the summed norms
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
    """Plot the time of a training step against the number of latents, and against k."""
    frame, _ = load_results("training_step_curve.json")
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
    """Plot the two figures of a demo's report that the README shows."""
    diagnoses = {name: slc.Diagnosis.load(Path(folder, name)) for name in ("l1", "batchtopk")}
    return [
        delta_norm_histogram(diagnoses).update_layout(height=520, width=WIDTH),
        nu_scatter(diagnoses).update_layout(height=500, width=WIDTH),
    ]


def draw(figures: list[Any], output: Path) -> None:
    """Write one picture with the figures below each other, drawn by headless Chromium."""
    chromium = shutil.which("chromium")
    if chromium is None:
        raise SystemExit("chromium is not on PATH: install it to draw the pictures.")
    html = [
        figure.to_html(full_html=False, include_plotlyjs=index == 0, config={"displayModeBar": False})
        for index, figure in enumerate(figures)
    ]
    height = sum(figure.layout.height for figure in figures)
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder, "picture.html")
        page.write_text(f"<meta charset=utf-8><body style='margin:0;background:white'>{''.join(html)}")
        command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        command += ["--hide-scrollbars", f"--user-data-dir={folder}/profile", f"--window-size={WIDTH},{height}"]
        command += ["--virtual-time-budget=8000", f"--screenshot={output.resolve()}", page.as_uri()]
        subprocess.run(command, check=True, capture_output=True)
    print(output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", help="folder of a finished demo: draws the picture of its report as well")
    args = parser.parse_args()
    draw([claims_figure()], IMAGES / "planted_claims.png")
    draw([speed_figure()], IMAGES / "training_step.png")
    if args.demo is not None:
        draw(demo_figures(args.demo), IMAGES / "demo_report.png")


if __name__ == "__main__":
    main()
