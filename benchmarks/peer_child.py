"""Runs in an environment of another library: reads our exports with its loader, or writes files with its code.

python peer_child.py PEER CHECKOUT FOLDER. Imports nothing of this package. Every case is a folder, beside one with the
suffix `.results`: its `x.safetensors` holds the inputs `x (token, model, d)`, `results.safetensors` the results `scores
(token, latent)` and `out`.
"""

import importlib
import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

WIDTH, D_SAE, N_TOKENS = 6, 11, 40


def inputs(*axes: int) -> torch.Tensor:
    return torch.randn(N_TOKENS, *axes, WIDTH, generator=torch.Generator().manual_seed(0)) * 2


def randomise(module: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.7)


def save_results(folder: Path, x: torch.Tensor, scores: torch.Tensor, out: torch.Tensor) -> None:
    found = folder.with_suffix(".results")
    found.mkdir(exist_ok=True)
    save_file({"x": x.contiguous()}, found / "x.safetensors")
    results = {"scores": scores.detach().contiguous(), "out": out.detach().contiguous()}
    save_file(results, found / "results.safetensors")


def dictionary_learning(folder: Path) -> None:
    """Read every export in the folder with the authors' loader, as from the Hub."""
    for name in ("nnsight", "zstandard"):  # which the package imports at the top, and its dictionaries do not need
        if importlib.util.find_spec(name) is None:
            importlib.import_module("datasets")  # looks for zstandard itself
            stub: Any = types.ModuleType(name)
            stub.LanguageModel = object
            sys.modules[name] = stub
    module = importlib.import_module("dictionary_learning.dictionary")
    for case in sorted(path for path in folder.iterdir() if path.suffix != ".results"):
        settings = json.loads((case / "config.json").read_text())
        kind = module.BatchTopKCrossCoder if "k" in settings else module.CrossCoder
        try:
            crosscoder = kind.from_pretrained(str(case), from_hub=True)
        except Exception as error:  # any refusal by the peer is a result
            (case.with_suffix(".results") / "error.txt").write_text(f"{type(error).__name__}: {error}"[:400])
            continue
        x = load_file(case.with_suffix(".results") / "x.safetensors")["x"]
        save_results(case, x, crosscoder.get_activations(x), crosscoder(x))


def dedicated_features(folder: Path) -> None:
    """Write a crosscoder whose k is all latents, so that TopK is ReLU."""
    module = importlib.import_module("dfc")
    crosscoder = module.DFCCrossCoder(WIDTH, D_SAE, D_SAE, 0.2, 0.3)
    randomise(crosscoder)
    crosscoder._apply_masks()
    crosscoder.save(str(folder / "relu"))
    x = inputs(2)
    out, acts = crosscoder(x)
    save_results(folder / "relu", x, acts * crosscoder.W_dec.norm(dim=-1).sum(dim=-1), out)


def crosscode(folder: Path) -> None:
    """Write crosscoders over 2 models and 1 or 3 hooks, ReLU and JumpReLU."""
    models = importlib.import_module("crosscode.models")
    jumprelu = models.AnthropicSTEJumpReLUActivation(D_SAE, 0.1)
    for n_hooks in (1, 3):
        for name, activation in (("relu", models.ReLUActivation()), ("jumprelu", jumprelu)):
            crosscoder = models.ModelHookpointAcausalCrosscoder(2, n_hooks, WIDTH, D_SAE, activation)
            randomise(crosscoder)
            case = folder / f"{name}_{n_hooks}"
            crosscoder.save(case)
            x = inputs(2, n_hooks)
            result = crosscoder.forward_train(x)
            norms = crosscoder.W_dec_LMPD.norm(dim=-1).flatten(1).sum(dim=-1)
            save_results(case, x, result.latents_BL * norms, result.recon_acts_BMPD)


def llamascopium(folder: Path) -> None:
    """Write crosscoders over three hooks, ReLU and JumpReLU, with and without scaled inputs."""
    module = importlib.import_module("llamascopium.models.crosscoder")
    hooks = [f"blocks.{layer}.hook_resid_post" for layer in (1, 3, 5)]
    for act_fn in ("relu", "jumprelu"):
        for mode in ("inference", "dataset-wise"):
            sizes = {"d_model": WIDTH, "expansion_factor": D_SAE / WIDTH + 1e-9, "act_fn": act_fn}
            cfg = module.CrosscoderConfig(**sizes, hook_points=hooks, norm_activation=mode)
            crosscoder = module.Crosscoder(cfg)
            randomise(crosscoder)
            crosscoder.set_dataset_average_activation_norm(dict(zip(hooks, (2.0, 5.0, 9.0), strict=True)))
            case = folder / f"{act_fn}-{mode}"
            crosscoder.save_pretrained(case)
            cfg.save_hyperparameters(case)
            x = inputs(3)
            batch = {hook: x[:, n] for n, hook in enumerate(hooks)}
            scaled, scales = crosscoder.normalize_activations(batch, return_scale_factor=True)
            stacked = crosscoder.prepare_input(scaled)[0]
            acts = crosscoder.encode(stacked)
            out = crosscoder.decode(acts)
            out = torch.stack([out[:, n] / scales[hook] for n, hook in enumerate(hooks)], dim=1)
            norms = crosscoder.decoder_norm()
            scores = acts[:, 0] * norms.sum(dim=0) if act_fn == "relu" else (acts * norms).flatten(1)
            save_results(case, x, scores, out)


if __name__ == "__main__":
    peer, checkout, target = sys.argv[1:]
    sys.path.insert(0, checkout)
    Path(target).mkdir(parents=True, exist_ok=True)
    globals()[peer](Path(target))
