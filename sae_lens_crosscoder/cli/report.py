"""The command `report`."""

from collections.abc import Sequence

from sae_lens_crosscoder.cli.flags import parse
from sae_lens_crosscoder.report import Exploration, write_explorer, write_neuronpedia
from sae_lens_crosscoder.report.export.neuronpedia import slug
from sae_lens_crosscoder.workflows.explore_folder import ReportConfig, explore_folder, validate_report_folders


def run(args: Sequence[str]) -> None:
    """Write one HTML page about all latents of one or several crosscoders."""
    cfg = parse(ReportConfig, args, "report")
    explorations: dict[str, Exploration] = {}
    for name, folder in validate_report_folders(cfg).items():
        print(f"{name}: exploring its latents on held-out rows", flush=True)
        explorations[name] = explore_folder(cfg, folder)
    print(write_explorer(explorations, cfg.output_path))
    if cfg.neuronpedia is not None:  # last, as it may refuse a name
        for name, exploration in explorations.items():
            print(write_neuronpedia(exploration, cfg.neuronpedia, slug(f"crosscoder-{name}")))
