"""Rewrites every measured passage of the README and the documentation from benchmarks/results.

python benchmarks/docs_tables.py
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import docs_accuracy
import docs_audit
import docs_family
import docs_real_pair
import docs_runs
import docs_serve
import docs_use
import docs_verdicts
from docs_results import ROOT
from docs_speed import centred, layers, no_worse, polish_cost, speed, waits

PASSAGES: Mapping[str, Callable[[], str]] = {
    "audit": docs_audit.audit,
    "audit baselines": docs_audit.audit_baselines,
    "audit limits": docs_audit.audit_limits,
    "family cost": docs_family.family_cost,
    "headline": docs_accuracy.headline,
    "claims": docs_accuracy.claims,
    "limits": docs_accuracy.limits,
    "tiny pair": docs_accuracy.tiny_pair,
    "carriers": docs_accuracy.carriers,
    "convergence": docs_accuracy.convergence,
    "intervals": docs_accuracy.intervals,
    "recipes": docs_accuracy.recipes,
    "architectures": docs_accuracy.architectures,
    "scores": docs_accuracy.scores,
    "hard": docs_verdicts.hard,
    "shared latents": docs_accuracy.shared_latents,
    "coactive latents": docs_verdicts.co_active,
    "causal": docs_accuracy.causal,
    "real pair": docs_real_pair.real_pair,
    "speed": speed,
    "waits": waits,
    "no worse": no_worse,
    "centred": centred,
    "polish cost": polish_cost,
    "layers": layers,
    "processes": docs_runs.processes,
    "faults": docs_runs.faults,
    "serve": docs_serve.serve,
    "use": docs_use.use,
    "several models": docs_use.several_models,
}
PASSAGE = re.compile(r"<!-- measured: ([\w ]+) -->\n(.*?)<!-- end -->", flags=re.DOTALL)


def pages() -> list[Path]:
    """List the README and all pages of the documentation."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def rewritten(text: str) -> str:
    """Return the text with every `<!-- measured: NAME -->` passage generated anew."""
    return PASSAGE.sub(lambda match: f"<!-- measured: {match[1]} -->\n{PASSAGES[match[1]]()}\n<!-- end -->", text)


def main() -> None:
    for page in pages():
        text = page.read_text()
        if PASSAGE.search(text):
            page.write_text(rewritten(text))
            print(page)


if __name__ == "__main__":
    main()
