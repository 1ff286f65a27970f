"""The command `diagnose`."""

from collections.abc import Sequence

from sae_lens_crosscoder.analysis.diagnosis.diagnosis import LATENTS_FILENAME
from sae_lens_crosscoder.analysis.weights.result import WeightDiagnosis
from sae_lens_crosscoder.cli.flags import parse
from sae_lens_crosscoder.workflows.diagnose_folder import WEIGHTS_PAGE, DiagnoseConfig, run_diagnose


def run(args: Sequence[str]) -> None:
    """Diagnose a crosscoder on the rows that its training held out, on other data, or from its weights alone."""
    cfg = parse(DiagnoseConfig, args, "diagnose")
    weights, diagnosis = run_diagnose(cfg)
    if weights is not None:
        _print_weights(weights)
        print(cfg.results / WEIGHTS_PAGE)
    if diagnosis is not None:
        print(diagnosis.conclusion)
        print(cfg.results / LATENTS_FILENAME)


def _print_weights(weights: WeightDiagnosis) -> None:
    print(f"{weights}.\nRead as {weights.manifest['layout']}.")
    for assumption in weights.manifest.get("assumptions", []):
        print(f"Assumed: {assumption}")
    print(f"\n{weights.sources.round(3).to_string()}\n")
    by_needs: dict[str, list[str]] = {}
    for quantity, needs in weights.manifest["needs"].items():
        by_needs.setdefault(needs, []).append(quantity)
    for needs, quantities in by_needs.items():
        print(f"Not in the weights, but from {needs}:")
        print("".join(f"  {quantity}\n" for quantity in quantities))
