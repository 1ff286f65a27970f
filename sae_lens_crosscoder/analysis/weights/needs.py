"""Quantities that the weights of a crosscoder cannot tell, with the models and data that they need."""

from sae_lens_crosscoder.analysis.diagnosis.manifest import trained_models
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder


def needs_of(crosscoder: InferenceCrosscoder) -> dict[str, str]:
    """Return the missing models and data, by quantity."""
    run = f"{_models(crosscoder)}, {_hook(crosscoder)}, and held-out data (--dataset_path or --mix)"
    needs = {
        "how often and how strongly latents fire, L0, dead and rare latents": run,
        "FVE of every source": run,
        "what latents fire on": run,
    }
    if crosscoder.layout.n_models > 1:
        needs |= {
            "nu_error, nu_reconstruction, presence and the verdict: which one-sided latents are artifacts": run,
            "q-values: how many latents are as one-sided by chance": f"{run}, and null runs, which take training",
            "what latents do: patching, KL": run,
        }
    if crosscoder.cfg.architecture() == "crosscoder" and crosscoder.cfg.metadata.k is not None:
        needs["which latents are on: the file has no threshold"] = "--theta, from slc.loading.estimate_theta on data"
    return needs


def _models(crosscoder: InferenceCrosscoder) -> str:
    assumed = _assumed(crosscoder, "model_names")
    flags = ("--model_name", "--chat_model_name")
    names = [name or flag for name, flag in zip(trained_models(crosscoder), flags, strict=False)]
    if crosscoder.layout.n_models > 2:
        names = [name or f"model {m}" for m, name in enumerate(trained_models(crosscoder))]
    names = names[: crosscoder.layout.n_models]
    return f"the model{'s' if len(names) > 1 else ''} {' and '.join(names)}{assumed}"


def _hook(crosscoder: InferenceCrosscoder) -> str:
    name = crosscoder.cfg.metadata.hook_name
    return "--hook_name" if name is None else f"at {name}{_assumed(crosscoder, 'hook_name')}"


def _assumed(crosscoder: InferenceCrosscoder, name: str) -> str:
    assumptions: list[str] = crosscoder.cfg.metadata.assumptions or []
    return " (assumed)" if any(line.startswith(f"{name}=") for line in assumptions) else ""
