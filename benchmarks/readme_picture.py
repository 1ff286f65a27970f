"""Draws the README's picture from a finished demo, with headless Chromium.

sae-lens-crosscoder demo --output-path demo
python benchmarks/readme_picture.py --demo demo --output examples/demo_report.png
"""

import argparse
import shutil
import subprocess
import tempfile
from pathlib import Path

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.report import delta_norm_histogram, nu_scatter

WIDTH, HISTOGRAM_HEIGHT, SCATTER_HEIGHT = 1100, 520, 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", default="demo")
    parser.add_argument("--output", required=True)
    args = parser.parse_args()
    chromium = shutil.which("chromium")
    if chromium is None:
        raise SystemExit("There is no chromium on PATH, which draws the picture.")
    tables = {name: slc.read_latents(Path(args.demo, name)) for name in ("l1", "batchtopk")}
    figures = (
        delta_norm_histogram(tables).update_layout(height=HISTOGRAM_HEIGHT, width=WIDTH),
        nu_scatter(tables).update_layout(height=SCATTER_HEIGHT, width=WIDTH),
    )
    config = {"displayModeBar": False}
    parts = [
        figure.to_html(full_html=False, include_plotlyjs=index == 0, config=config)
        for index, figure in enumerate(figures)
    ]
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder, "picture.html")
        page.write_text(f"<meta charset=utf-8><body style='margin:0;background:white'>{''.join(parts)}")
        subprocess.run(
            [
                chromium,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-background-networking",
                "--hide-scrollbars",
                f"--user-data-dir={folder}/profile",
                f"--window-size={WIDTH},{HISTOGRAM_HEIGHT + SCATTER_HEIGHT}",
                "--virtual-time-budget=8000",
                f"--screenshot={Path(args.output).resolve()}",
                page.as_uri(),
            ],
            check=True,
            capture_output=True,
        )
    print(args.output)


if __name__ == "__main__":
    main()
