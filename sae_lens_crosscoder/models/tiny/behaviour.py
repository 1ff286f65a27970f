"""Behaviour of the tiny models and the concepts they carry, which tests and reports compare with."""

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import HookedTransformer

from sae_lens_crosscoder.models.tiny.prompts import CONCEPT_KINDS, CONCEPTS, MatchedPrompts, matched_prompts


@torch.no_grad()
def first_token_accuracy(
    model: HookedTransformer, prompts: Int[Tensor, "pairs pos"], answers: Int[Tensor, " pairs"]
) -> float:
    """Fraction of prompts, in [0, 1], whose answer is the model's most likely next token."""
    logits = model(prompts.to(model.cfg.device))[:, -1]
    return (logits.argmax(dim=-1).cpu() == answers).float().mean().item()


def behaviour_table(base: HookedTransformer, chat: HookedTransformer, n_prompts: int, seed: int) -> pd.DataFrame:
    """Accuracy of both models' answers, by kind of prompt.

    An answer is right if its first token is, which for every kind takes reading the request. `gossip` counts insults:
    it is high for a model that insults.

    Args:
        base: the model before fine-tuning.
        chat: the model after it.
        n_prompts: held-out prompts per concept and side. A kind that several concepts share counts for the last.
        seed: seed of the prompts.

    Returns:
        A row per kind: `concept`, `kind_of_change`, `base` and `chat` (fractions in [0, 1]).
    """
    rows: dict[str, dict[str, object]] = {}
    for concept in CONCEPTS:
        prompts = matched_prompts(concept, n_prompts, seed)
        sides = ((prompts.positive, prompts.positive_answers), (prompts.negative, prompts.negative_answers))
        for kind, (tokens, answers) in zip(CONCEPT_KINDS[concept], sides, strict=True):
            rows[kind] = {
                "concept": concept,
                "kind_of_change": "shared" if kind == "praise" else prompts.kind_of_change,
                "base": first_token_accuracy(base, tokens, answers),
                "chat": first_token_accuracy(chat, tokens, answers),
            }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("kind")


@torch.no_grad()
def mean_difference(model: HookedTransformer, prompts: MatchedPrompts, hook_name: str) -> Float[Tensor, " d_model"]:
    """Mean activation of positive minus negative prompts, at the decision token."""
    means: list[Tensor] = []
    for tokens in (prompts.positive, prompts.negative):
        _, cache = model.run_with_cache(tokens.to(model.cfg.device), names_filter=hook_name, return_type=None)
        means.append(cache[hook_name][:, prompts.decision_position].double().mean(dim=0))
    return (means[0] - means[1]).cpu()


def oracle_table(
    base: HookedTransformer, chat: HookedTransformer, hook_name: str, n_pairs: int, seed: int
) -> pd.DataFrame:
    """Strength of each concept in the base model at the decision token, relative to the chat model.

    The oracle is |difference of means, base| / |difference of means, chat| over matched prompts: near 0 if only the
    chat model carries the concept, near 1 if both do, above 1 if fine-tuning weakened it. No crosscoder is involved,
    so it can be compared with scores of latents.

    Args:
        base: the model before fine-tuning.
        chat: the model after it.
        hook_name: the hook at which to read both models.
        n_pairs: matched pairs per concept.
        seed: seed of the prompts.

    Returns:
        A row per concept: `kind_of_change`, `oracle`, and `cosine`, of the two differences, in [-1, 1].
    """
    rows: dict[str, dict[str, object]] = {}
    for concept in CONCEPTS:
        prompts = matched_prompts(concept, n_pairs, seed)
        differences = [mean_difference(model, prompts, hook_name) for model in (base, chat)]
        rows[concept] = {
            "kind_of_change": prompts.kind_of_change,
            "oracle": (differences[0].norm() / differences[1].norm()).item(),
            "cosine": torch.cosine_similarity(differences[0], differences[1], dim=0).item(),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("concept")
