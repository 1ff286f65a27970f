"""Explorations with planted values, of any size, as if a pair of models had been looked at."""

import numpy as np
import pandas as pd
import torch

from sae_lens_crosscoder.analysis.examples.file import load_examples, save_examples
from sae_lens_crosscoder.analysis.statistics.latent_statistics import LatentStatistics
from sae_lens_crosscoder.analysis.statistics.profiles import ActivationProfiles
from sae_lens_crosscoder.analysis.use.example_codes import ExampleCodes
from sae_lens_crosscoder.causal.latents.logit_attribution import LogitLens
from sae_lens_crosscoder.report import Exploration
from tests.report.made_up import make_manifest, make_table, make_use

CONTEXT, N_PROMPTS, BEFORE, AFTER = 64, 128, 16, 10
GROUPS = ("bos", "template", "user", "assistant", "text")
KL_COLUMNS = ("kl_change_added", "kl_change_removed")


class WordTokenizer:
    """Token `i` reads " w<i>", but for the words that it is given."""

    all_special_ids = (0,)

    def __init__(self, words=(), n=500):
        self.words = {**{i: f" w{i}" for i in range(n)}, 1: " plain", **dict(words)}

    def __len__(self):
        return len(self.words)

    def decode(self, ids):
        return "".join(self.words[i] for i in ids)

    def convert_ids_to_tokens(self, i):
        return f"<piece {i}>"


def make_exploration(folder, n=200, seed=0, words=(), n_top=4, n_quantiles=3, n_per_quantile=2):
    """What all parts say of `n` latents; a fixed set of rows, in which examples overlap as they do in real ones."""
    rng = np.random.default_rng(seed)
    table, manifest = make_table(n, seed), make_manifest()
    table["verdict"] = table.verdict.where(~table.dead, "dead")
    table["frequency"], table["mean_activation"] = table.n_active / 65536, table.max_activation / 3
    table["frac_template"] = np.where(table.dead, np.nan, rng.random(n).round(2))
    for column in ("dec_norm_base", "dec_norm_chat", "cos_sim", "enc_norm_base", "enc_norm_chat", "enc_cos_sim"):
        table[column] = rng.random(n)
    use = make_use(n, seed)
    table = table.join(use.latents[[*use.columns]])
    ids = torch.tensor(rng.integers(2, 500, (N_PROMPTS, CONTEXT)))
    lens = LogitLens(*(torch.tensor(part) for _ in "ab" for part in (rng.integers(0, 500, (n, 8)), rng.random((n, 8)))))
    places = pd.DataFrame({f"{c}_{g}": rng.random(n) for g in GROUPS for c in PLACE_COLUMNS})
    statistics = LatentStatistics(places, n_tokens={"all": 1, **dict.fromkeys(GROUPS, 1)}, l0={}, fve={})
    examples = _write(folder / f"examples-{seed}.safetensors", table, ids, rng, n_top, n_quantiles, n_per_quantile)
    return Exploration(
        table=table,
        manifest=manifest,
        tokenizer=WordTokenizer(words),
        statistics=statistics,
        profiles=ActivationProfiles(
            torch.tensor(rng.integers(0, 90, (n, 24))), torch.tensor(rng.random((n, 16))), tuple(range(0, 64, 4)), 63
        ),
        lenses={"base": lens, "chat": lens},
        examples=examples,
        kl=torch.tensor(rng.exponential(0.5, (N_PROMPTS, CONTEXT))),
        twins=_twins(table, rng),
        effects=_effects(table, rng),
        random_effects={column: rng.normal(0, 0.005, 40).tolist() for column in KL_COLUMNS},
        use=use,
        codes=_codes(examples, rng),
        concepts=pd.DataFrame({"latent": [7], "share": [0.4], "auroc": [0.9]}, index=["the refusal"]),
    )


PLACE_COLUMNS = ("n_active", "frequency", "max_score", "mean_score")


def _write(path, table, ids, rng, n_top, n_quantiles, n_per_quantile):
    n, n_slots = len(table), n_top + n_quantiles * n_per_quantile
    token = rng.integers(0, N_PROMPTS * CONTEXT, (n, n_slots))
    token[table.dead.to_numpy()] = -1
    prompt, position = np.divmod(np.maximum(token, 0), CONTEXT)
    at = position[..., None] + np.arange(-BEFORE, AFTER + 1)
    inside = (at >= 0) & (at < CONTEXT) & (token >= 0)[..., None]
    windows = ids.numpy()[prompt[..., None], at.clip(0, CONTEXT - 1)]
    shares = rng.normal(1, 1, (*inside.shape, 2))
    scores = np.where(rng.random(inside.shape) < 0.1, rng.random(inside.shape) * 2, 0)
    heights = -np.sort(-rng.uniform(2, 9, (n, n_slots)), axis=1)
    heights[:, n_top:] = heights[:, n_top:][:, ::-1]
    scores[..., BEFORE] = heights
    tensors = {
        "token": torch.tensor(token),
        "token_ids": torch.tensor(np.where(inside, windows, -1).astype("i4")),
        "scores": torch.tensor(np.where(inside, scores, np.nan).astype("f4")),
        "shares": torch.tensor(np.where(inside[..., None], shares, np.nan).astype("f4")),
        "n_contexts": torch.tensor((token >= 0).sum(axis=1)),
        "b_enc": torch.zeros(n),
    }
    manifest = {"n_top": n_top, "n_quantiles": n_quantiles, "window": [BEFORE, AFTER], "context_size": CONTEXT}
    about = {"models": ["made/Up-2b", "made/Up-2b-it"], "hook_name": "blocks.13.hook_resid_post", "dataset_path": "a/b"}
    save_examples(tensors, path, {**manifest, **about, "n_tokens": N_PROMPTS * CONTEXT, "d_models": [4, 4]})
    return load_examples(path)


def _codes(examples, rng):
    """Codes of both models alone on some tokens around every peak."""
    peaks, n_places = examples.peaks(), N_PROMPTS * CONTEXT
    latent, slot = (peaks >= 0).nonzero(as_tuple=True)
    near = torch.tensor(rng.integers(-1, 2, (len(latent), 2)))
    places = (peaks[latent, slot][:, None] + near).clamp(0, n_places - 1)
    keys = (latent[:, None] * n_places + places).unique()
    values = torch.tensor(rng.uniform(0, 9, (len(keys), 2)) * (rng.random((len(keys), 2)) < 0.7)).float()
    return ExampleCodes(("base", "chat"), n_places, CONTEXT, keys, values)


def _twins(table, rng):
    sides = (table.index[table.label == f"{side}_only"][:3] for side in ("chat", "base"))
    pairs = pd.DataFrame(dict(zip(("chat_latent", "base_latent"), sides, strict=True)))
    pairs["cosine"], pairs["divergence"], pairs["isolated"] = rng.random(len(pairs)), rng.random(len(pairs)), True
    return pairs.assign(n_high=100, n_only_chat=30, n_only_base=20)


def _effects(table, rng):
    specific = table.index[table.verdict.isin(["chat_specific", "base_specific"])]
    effects = pd.DataFrame(rng.normal(0, 0.01, (len(specific), 2)), columns=KL_COLUMNS, index=specific)
    for column in ("raises", "lowers", "writes", "writes_against"):
        effects[column] = [[(" w7", 0.5)]] * len(specific)
    return effects
