"""Random crosscoders in every layout of other people's, and what their own code makes of random tokens."""

import json
from dataclasses import dataclass

import torch
from safetensors.torch import save_file

from tests.reference import foreign_layouts as ref

WIDTH, D_SAE, N_TOKENS = 5, 9, 30
KISSANE_SCALES = (0.2758961493232058, 0.24422852496546169)
NAN = torch.full((2, WIDTH), torch.nan)


def tokens():
    """(token, model, d), away from 0, so that means matter."""
    generator = torch.Generator().manual_seed(11)
    return torch.randn(N_TOKENS, 2, WIDTH, generator=generator) * 2 + 1


def main_tensors(seed=0):
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(shape, generator=generator)

    return {
        "encoder.weight": random(2, WIDTH, D_SAE),
        "encoder.bias": random(D_SAE),
        "decoder.weight": random(2, D_SAE, WIDTH) * torch.rand(2, D_SAE, 1, generator=generator) * 2,
        "decoder.bias": random(2, WIDTH),
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


def nanda(hooks=False):
    theirs = main_tensors(seed=1)
    W_dec, W_enc, b_dec = theirs["decoder.weight"].transpose(0, 1), theirs["encoder.weight"], theirs["decoder.bias"]
    if hooks:
        W_dec, W_enc, b_dec = W_dec.unsqueeze(2), W_enc.unsqueeze(1), b_dec.unsqueeze(1)
    return {"W_enc": W_enc, "W_dec": W_dec.contiguous(), "b_enc": theirs["encoder.bias"], "b_dec": b_dec}


OFF = {"activation_mean": NAN, "activation_std": NAN.clone(), "activation_global_scale": torch.tensor(1.0)}


@dataclass(frozen=True)
class Layout:
    """A file in somebody's layout, and how their code reads it."""

    tensors: dict
    name: str = "model.safetensors"
    settings: dict | None = None
    format: str = "dictionary_learning"
    score_norm: str = "sum"
    scales: tuple = (1.0, 1.0)
    """Known outside the file only."""

    def write(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        if self.name.endswith(".pt"):
            torch.save(self.tensors, folder / self.name)
        else:
            save_file(self.tensors, folder / self.name)
        for name, settings in (self.settings or {}).items():
            (folder / name).write_text(json.dumps(settings))
        return folder

    def lists(self):
        """The tensors for the reference, with compiled names and the one hook undone."""
        tensors = {name.removeprefix("_orig_mod."): tensor for name, tensor in self.tensors.items()}
        if tensors.get("W_enc", NAN).ndim == 4:
            tensors |= {
                "W_enc": tensors["W_enc"][:, 0],
                "W_dec": tensors["W_dec"][:, :, 0],
                "b_dec": tensors["b_dec"][:, 0],
            }
        return {name: tensor.tolist() for name, tensor in tensors.items()}

    def n_latents(self):
        (encoder_bias,) = (tensor for name, tensor in self.tensors.items() if name.endswith(("encoder.bias", "b_enc")))
        return encoder_bias.shape[-1]

    def expected(self):
        """Scores f (n_base + n_chat), reconstructions (token, model, d), and 1 - dec_norm_diff, by the reference."""
        lists = self.lists()
        norms = [ref.norms(self.format, lists, j) for j in range(self.n_latents())]
        scores, outs = [], []
        for token in tokens().tolist():
            if self.format == "dictionary_learning":
                acts, out = ref.dictionary_learning(lists, token)
            else:
                acts, out = ref.nanda(lists, token, self.scales)
            scores.append([f * sum(norm) for f, norm in zip(acts, norms, strict=True)])
            outs.append(out)
        delta = [1 - ref.dec_norm_diff(*norm) for norm in norms]
        return tuple(torch.tensor(values, dtype=torch.float64) for values in (scores, outs, delta))


TRAINER = {"trainer": {"k": 3, "layer": 13, "lm_name": "google/gemma-2-2b-it-google/gemma-2-2b"}}
HUB = {"activation_dim": WIDTH, "dict_size": D_SAE, "num_layers": 2}
COMPILED = {f"_orig_mod.{name}": tensor for name, tensor in main_tensors().items()}
OLDEST = main_tensors() | {"encoder.bias": torch.arange(2.0 * D_SAE).view(2, D_SAE) / 9 - 1}
L1_SAE = main_tensors() | {"code_normalization_id": torch.tensor(2)}
HOOK = {"hook_point": "blocks.3.hook_resid_pre"}
LAYOUTS = {
    "A": Layout(main_tensors(), settings={"config.json": HUB}),
    "A-local": Layout(main_tensors(), name="model_final.pt", settings={"config.json": TRAINER}),
    "A-compiled": Layout(COMPILED, name="model_final.pt"),
    "A-oldest": Layout(OLDEST),
    "B": Layout(batchtopk(), settings={"trainer_config.json": TRAINER}),
    "B-zero": Layout(batchtopk(0.0)),
    "C-crosscoder": Layout(with_norm(1)),
    "C-sae": Layout(with_norm(2), score_norm="l2"),
    "C-mixed": Layout(with_norm(3), score_norm="mixed"),
    "C-none": Layout(with_norm(4, threshold=1.5), score_norm="none"),
    "C-sae-l1": Layout(L1_SAE, score_norm="l2"),
    "D-off": Layout(with_norm(1) | OFF | {"target_rms": torch.tensor(1.0)}),
    "D": Layout(normalised(0.4)),
    "D-sae": Layout(normalised(0.4, code_normalization_id=torch.tensor(2)), score_norm="l2"),
    "E": Layout(normalised([0.4, 0.15])),
    "kissane": Layout(
        nanda(), "cc_weights.pt", {"cfg.json": {"dict_size": D_SAE}}, format="kissane", scales=KISSANE_SCALES
    ),
    "nanda": Layout(nanda(), "17.pt", {"17_cfg.json": HOOK}, format="crosscode"),
    "crosscode": Layout(nanda(hooks=True), settings={"model_cfg.json": {}}, format="crosscode"),
}
