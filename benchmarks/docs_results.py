"""Reads results files and formats them as Markdown for the documentation."""

import json
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks/results"


def load_results(name: str) -> tuple[pd.DataFrame, str]:
    """Load the rows of a results file, and the sentence that says how to measure them again."""
    document = json.loads((RESULTS / name).read_text())
    return pd.DataFrame(document["rows"]), f"Measured by `{document['command']}`."


def markdown_table(rows: list[list[str]]) -> str:
    """Format rows as a Markdown table with the first row as its heading."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def two_decimals(value: float) -> str:
    """Format a number, or "none" for nan."""
    return "none" if value != value else f"{value:.2f}"
