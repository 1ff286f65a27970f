"""Random crosscoders in every layout of other people's, and what their own code makes of random tokens."""

import json
from dataclasses import dataclass, field

import torch
import yaml
from safetensors.torch import load_file, save_file

from tests.loading.foreign_expectations import EXPECTATIONS

WIDTH, D_SAE, N_TOKENS = 5, 9, 30
KISSANE_SCALES = (0.2758961493232058, 0.24422852496546169)
NAN = torch.full((2, WIDTH), torch.nan)


def tokens(n_sources=2, width=WIDTH, n=N_TOKENS):
    """(token, model, d), away from 0, so that means matter."""
    generator = torch.Generator().manual_seed(11)
    return torch.randn(n, n_sources, width, generator=generator) * 2 + 1


def randoms(seed):
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(shape, generator=generator)


def main_tensors(seed=0, width=WIDTH, d_sae=D_SAE):
    random = randoms(seed)
    return {
        "encoder.weight": random(2, width, d_sae),
        "encoder.bias": random(d_sae),
        "decoder.weight": random(2, d_sae, width) * random(2, d_sae, 1).abs() * 2,
        "decoder.bias": random(2, width),
    }


def batchtopk(threshold=3.0):
    return main_tensors() | {"k": torch.tensor(7, dtype=torch.int), "threshold": torch.tensor(threshold)}


def with_norm(norm_id, threshold=3.0):
    return batchtopk(threshold) | {"code_normalization_id": torch.tensor(norm_id)}


def normalised(scale, std=None, **tensors):
    generator = torch.Generator().manual_seed(4)
    normaliser = {
        "activation_mean": torch.randn(2, WIDTH, generator=generator) * 3,
        "activation_std": torch.rand(2, WIDTH, generator=generator) + 0.5 if std is None else std,
        "activation_global_scale": torch.tensor(scale),
        "target_rms": torch.tensor(1.0),
    }
    return with_norm(1, threshold=2.0) | normaliser | tensors


def nanda(hooks=False, width=WIDTH, d_sae=D_SAE):
    theirs = main_tensors(1, width, d_sae)
    W_dec, W_enc, b_dec = theirs["decoder.weight"].transpose(0, 1), theirs["encoder.weight"], theirs["decoder.bias"]
    if hooks:
        W_dec, W_enc, b_dec = W_dec.unsqueeze(2), W_enc.unsqueeze(1), b_dec.unsqueeze(1)
    return {"W_enc": W_enc, "W_dec": W_dec.contiguous(), "b_enc": theirs["encoder.bias"], "b_dec": b_dec}


def crosscode(n_models, n_hooks, seed=3, log_threshold=False, folded=None):
    """The names and buffers of crosscode's own modules."""
    random, shape = randoms(seed), (n_models, n_hooks)
    tensors = {
        "_W_enc_XiDiL": random(*shape, WIDTH, D_SAE),
        "_W_dec_LXoDo": random(D_SAE, *shape, WIDTH),
        "b_enc_L": random(D_SAE),
        "_b_dec_XoDo": random(*shape, WIDTH),
        "folded_scaling_factors_in_Xi": torch.zeros(shape) if folded is None else folded,
        "folded_scaling_factors_out_Xo": torch.zeros(shape) if folded is None else folded.clone(),
        "is_folded": torch.tensor(folded is not None),
    }
    return tensors | ({"_activation_fn.log_threshold_L": random(D_SAE) / 2 + 1} if log_threshold else {})


def crosscode_cfg(n_models, n_hooks, classname="ReLUActivation", **cfg):
    return {
        "model_cfg.yaml": {
            "n_models": n_models,
            "n_hookpoints": n_hooks,
            "d_model": WIDTH,
            "n_latents": D_SAE,
            "activation_fn": {"classname": classname, "cfg": cfg},
            "use_encoder_bias": True,
            "use_decoder_bias": True,
            "dtype": "float32",
        }
    }


def dedicated(n_a=2, n_b=3):
    """`model.pt` of a dedicated-feature crosscoder: model A, the tuned one, is first."""
    random = randoms(5)
    enc_mask, dec_mask = torch.ones(2, D_SAE), torch.ones(D_SAE, 2)
    enc_mask[1, :n_a] = dec_mask[:n_a, 1] = 0
    enc_mask[0, n_a : n_a + n_b] = dec_mask[n_a : n_a + n_b, 0] = 0
    return {
        "W_enc": random(2, WIDTH, D_SAE) * enc_mask[:, None],
        "b_enc": random(D_SAE),
        "W_dec": random(D_SAE, 2, WIDTH) * dec_mask[..., None],
        "b_dec": random(2, WIDTH),
        "enc_mask": enc_mask,
        "dec_mask": dec_mask,
    }


def dedicated_cfg(n_a=2, n_b=3, **more):
    sizes = {"activation_dim": WIDTH, "dict_size": D_SAE, "k": 3, "n_a": n_a, "n_b": n_b}
    return {"config.json": sizes | more}


def dedicated_batchtopk(n_a=2, n_b=3):
    """The tensors of the authors' library, with the partition as plain numbers beside them."""
    tensors, masks = with_norm(1, threshold=2.0), dedicated(n_a, n_b)
    return {
        **tensors,
        "encoder.weight": tensors["encoder.weight"] * masks["enc_mask"][:, None],
        "decoder.weight": tensors["decoder.weight"] * masks["dec_mask"].T[..., None],
        "_partition_config": {
            "dict_size": D_SAE,
            "model_a_exclusive_pct": (n_a + 0.5) / D_SAE,
            "model_b_exclusive_pct": (n_b + 0.5) / D_SAE,
        },
    }


def gemma(n_layers=4, n=3, width=WIDTH):
    """Files `params_layer_{i}` that read one layer and write it and later ones."""
    random, tensors = randoms(6), {}
    for layer in range(n_layers):
        w_dec = random(n, n_layers, width)
        w_dec[:, :layer] *= 1e-3  # small, and not 0
        tensors |= {
            f"params_layer_{layer}.w_enc": random(width, n),
            f"params_layer_{layer}.b_enc": random(n),
            f"params_layer_{layer}.threshold": random(n).abs(),
            f"params_layer_{layer}.w_dec": w_dec,
            f"params_layer_{layer}.b_dec": random(width),
        }
    return tensors


def gemma_cfg(layers=(5, 9, 12, 15), n=3, **more):
    point = "model.layers.{" + ",".join(map(str, layers)) + "}.output"
    return {
        "config.json": {
            "type": "crosscoder",
            "architecture": "jump_relu",
            "width": n * len(layers),
            "l0": 50,
            "affine_connection": False,
            "model_name": "google/gemma-3-270m-pt",
            "hf_hook_point_in": point,
            "hf_hook_point_out": point,
        }
        | more
    }


HOOKS = tuple(f"blocks.{n}.hook_resid_post" for n in (2, 4, 6))
NORMS = (1.5, 4.0, 9.0)


def openmoss(jumprelu=False, norms=None):
    random, n = randoms(7), len(HOOKS)
    tensors = {
        "W_E": random(n, WIDTH, D_SAE),
        "b_E": random(n, D_SAE),
        "W_D": random(n, D_SAE, WIDTH),
        "b_D": random(n, WIDTH),
    }
    if jumprelu:
        tensors["activation_function.log_jumprelu_threshold"] = random(D_SAE) / 2 + 1.5
    for hook, norm in zip(HOOKS, norms or (0.0,) * n, strict=True):  # never written for weights that need none
        tensors[f"dataset_average_activation_norm.{hook}"] = torch.tensor(norm)
    return tensors


def openmoss_cfg(act_fn="relu", norm_activation="inference", **more):
    return {
        "config.json": {
            "sae_type": "crosscoder",
            "d_model": WIDTH,
            "expansion_factor": D_SAE / WIDTH,
            "use_decoder_bias": True,
            "act_fn": act_fn,
            "norm_activation": norm_activation,
            "sparsity_include_decoder_norm": True,
            "top_k": 50,
            "use_triton_kernel": False,
            "sparsity_threshold_for_triton_spmm_kernel": 0.996,
            "jumprelu_threshold_window": 2.0,
            "hook_points": list(HOOKS),
        }
        | more,
        "lm_config.json": {"model_name": "EleutherAI/pythia-70m", "prepend_bos": True},
    }


OFF = {"activation_mean": NAN, "activation_std": NAN.clone(), "activation_global_scale": torch.tensor(1.0)}


@dataclass(frozen=True)
class Layout:
    """Files in somebody's layout, and how their code reads them."""

    tensors: dict
    name: str = "model.safetensors"
    """The weights file; one per part if the tensors' names begin with `params_layer_`."""
    settings: dict | None = None
    format: str = "dictionary_learning"
    score_norm: str = "sum"
    scales: tuple = (1.0, 1.0)
    """Known outside the file only."""
    options: dict = field(default_factory=dict)
    """Arguments of `load` without which the file is refused."""
    kind: str = ""
    """How its own code computes, if not as the format's first kind."""
    n_sources: int = 2

    @property
    def is_pair(self):
        return self.n_sources == 2

    def write(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name, tensors in self.files().items():
            torch.save(tensors, folder / name) if name.endswith(".pt") else save_file(tensors, folder / name)
        for name, settings in (self.settings or {}).items():
            (folder / name).write_text(yaml.safe_dump(settings) if name.endswith("yaml") else json.dumps(settings))
        return folder

    def files(self):
        """The tensors by file."""
        if self.format != "gemma_scope_2":
            return {self.name: self.tensors}
        files = {}
        for name, tensor in self.tensors.items():
            part, _, rest = name.partition(".")
            files.setdefault(f"{part}.safetensors", {})[rest] = tensor
        return files

    def reread(self, folder):
        """The same layout with the tensors that are now on the disk."""
        tensors = {}
        for name in self.files():
            path = folder / name
            loaded = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
            prefix = f"{path.stem}." if self.format == "gemma_scope_2" else ""
            tensors |= {prefix + key: tensor for key, tensor in loaded.items()}
        tensors = {
            key: tensor.squeeze() if isinstance(tensor, torch.Tensor) and tensor.numel() == 1 else tensor
            for key, tensor in tensors.items()
        }
        fields = ("settings", "format", "scales", "options", "kind", "n_sources")
        return Layout(tensors, self.name, **{name: getattr(self, name) for name in fields})

    def lists(self):
        """The tensors for the reference, with compiled names undone."""
        tensors = {name.removeprefix("_orig_mod."): tensor for name, tensor in self.tensors.items()}
        return {
            name: tensor.tolist() if isinstance(tensor, torch.Tensor) else tensor for name, tensor in tensors.items()
        }

    def expected(self, x=None):
        """Scores f (n_base + n_chat), reconstructions (token, source, d), 1 - dec_norm_diff of a pair; reference."""
        x = tokens(self.n_sources) if x is None else x
        scores, outs, delta = EXPECTATIONS[self.kind or self.format](self, x.tolist())
        return tuple(torch.tensor(values, dtype=torch.float64) for values in (scores, outs, delta))


TRAINER = {"trainer": {"layer": 13, "lm_name": "google/gemma-2-2b-it-google/gemma-2-2b", "lr": 1e-4}}
HUB = {"activation_dim": WIDTH, "dict_size": D_SAE, "num_layers": 2}
COMPILED = {f"_orig_mod.{name}": tensor for name, tensor in main_tensors().items()}
OLDEST = main_tensors() | {"encoder.bias": torch.arange(2.0 * D_SAE).view(2, D_SAE) / 9 - 1}
L1_SAE = main_tensors() | {"code_normalization_id": torch.tensor(2)}
DECOUPLED = with_norm(5) | {"threshold": torch.tensor([2.0, 3.5])}
HOOK = {"hook_point": "blocks.3.hook_resid_pre"}
SCALES = {"activation_scales": KISSANE_SCALES}
JUMPRELU = "AnthropicSTEJumpReLUActivation"
LAYOUTS = {
    "A": Layout(main_tensors(), settings={"config.json": HUB}),
    "A-local": Layout(main_tensors(), name="model_final.pt", settings={"config.json": TRAINER}),
    "A-compiled": Layout(COMPILED, name="model_final.pt"),
    "A-oldest": Layout(OLDEST),
    "B": Layout(batchtopk(), settings={"trainer_config.json": {"trainer": TRAINER["trainer"] | {"k": 7}}}),
    "B-zero": Layout(batchtopk(0.0)),
    "C-crosscoder": Layout(with_norm(1)),
    "C-sae": Layout(with_norm(2), score_norm="l2"),
    "C-mixed": Layout(with_norm(3), score_norm="mixed"),
    "C-none": Layout(with_norm(4, threshold=1.5), score_norm="none"),
    "C-sae-l1": Layout(L1_SAE, score_norm="l2"),
    "C-decoupled": Layout(DECOUPLED, kind="decoupled", options={"split_gates": True}),
    "D-off": Layout(with_norm(1) | OFF | {"target_rms": torch.tensor(1.0)}),
    "D": Layout(normalised(0.4)),
    "D-sae": Layout(normalised(0.4, code_normalization_id=torch.tensor(2)), score_norm="l2"),
    "E": Layout(normalised([0.4, 0.15])),
    "kissane": Layout(
        nanda(),
        "cc_weights.pt",
        {"cfg.json": {"dict_size": D_SAE}},
        format="kissane",
        scales=KISSANE_SCALES,
        options=SCALES,
    ),
    "nanda": Layout(nanda(), "17.pt", {"17_cfg.json": HOOK}, format="crosscode"),
    "crosscode": Layout(nanda(hooks=True), settings={"model_cfg.json": {}}, format="crosscode"),
    "crosscode-jumprelu": Layout(
        crosscode(2, 1, log_threshold=True),
        "model.pt",
        crosscode_cfg(2, 1, JUMPRELU, size=D_SAE, bandwidth=0.1),
        format="crosscode",
        score_norm="none",
    ),
    "crosscode-folded": Layout(
        crosscode(2, 1, folded=torch.tensor([[0.5], [0.2]])), "model.pt", crosscode_cfg(2, 1), format="crosscode"
    ),
    "crosscode-hooks": Layout(crosscode(2, 3), "model.pt", crosscode_cfg(2, 3), format="crosscode", n_sources=6),
    "dedicated": Layout(
        dedicated(),
        "model.pt",
        dedicated_cfg(),
        format="dedicated_features",
        score_norm="none",
        options={"theta": 1.5},
    ),
    "dedicated-batchtopk": Layout(
        dedicated_batchtopk(), "model_final.pt", {}, format="dedicated_features", kind="dedicated_batchtopk"
    ),
    "gemma": Layout(gemma(), "", gemma_cfg(), format="gemma_scope_2", score_norm="none", n_sources=4),
    "openmoss": Layout(openmoss(), "sae_weights.safetensors", openmoss_cfg(), format="llamascopium", n_sources=3),
    "openmoss-jumprelu": Layout(
        openmoss(True, NORMS),
        "sae_weights.safetensors",
        openmoss_cfg("jumprelu", "dataset-wise"),
        format="llamascopium",
        kind="llamascopium_jumprelu",
        options={"split_gates": True},
        n_sources=3,
    ),
}
PAIRS = [name for name, layout in LAYOUTS.items() if layout.is_pair]
