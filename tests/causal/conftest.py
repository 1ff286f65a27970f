"""Random crosscoders whose latents are on, and pairs of small models to patch."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoConfig, GPTNeoForCausalLM

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.models.tiny import tiny_tokenizer
from tests.models.small_models import gemma2, perturbed, random_hooked_transformer, save_pair, some_tokens

D_SAE, D_MODEL, HOOK = 10, 32, "blocks.0.hook_resid_post"
LATENTS = [7, 2, 5]


def random_crosscoder(d_models=(4, 4), threshold=0.5, dtype="float64", seed=0, d_sae=D_SAE):
    """ReLU with threshold None. The encoder is loud, so that quiet models' latents fire."""
    generator = torch.Generator().manual_seed(seed)
    shape: dict[str, Any] = dict(d_models=d_models, d_sae=d_sae, dtype=dtype)
    if threshold is None:
        crosscoder: Any = slc.ReLUCrosscoder(slc.ReLUCrosscoderConfig(**shape))
    else:
        crosscoder = slc.JumpReLUCrosscoder(slc.JumpReLUCrosscoderConfig(**shape))
    with torch.no_grad():
        for parameter in crosscoder.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
        if threshold is not None:
            crosscoder.threshold.fill_(threshold)
    crosscoder.cfg.metadata.hook_name = HOOK
    return crosscoder


def thresholds(crosscoder):
    return getattr(crosscoder, "threshold", torch.zeros(crosscoder.cfg.d_sae)).tolist()


def stacked_activations(*rows, d_in=8, seed=1):
    return torch.randn(*rows, d_in, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gpt2(seed=0, noise=0.0):
    config = GPT2Config(
        vocab_size=len(tiny_tokenizer()), n_positions=64, n_embd=D_MODEL, n_layer=3, n_head=4, bos_token_id=0
    )
    return perturbed(GPT2LMHeadModel, config, seed, noise)


def gpt_neo(seed=0, noise=0.0):
    """Whose blocks return tuples, and whose attention is local in every other layer."""
    config = GPTNeoConfig(
        vocab_size=len(tiny_tokenizer()),
        hidden_size=D_MODEL,
        num_layers=4,
        num_heads=4,
        attention_types=[[["global", "local"], 2]],
        window_size=6,
        max_position_embeddings=64,
        bos_token_id=0,
    )
    return perturbed(GPTNeoForCausalLM, config, seed, noise)


@dataclass(frozen=True)
class Case:
    """A pair, a crosscoder of it with active latents, and tokens."""

    pair: Any
    crosscoder: Any
    tokens: torch.Tensor

    def activation(self, m):
        return self.pair.members[m].run_with_cache(self.tokens, names_filter=[HOOK])[1][HOOK]

    def logits(self, m, activation):
        """Model m's logits with its activation at the hook written over: one hook, one full forward pass."""
        return self.pair.members[m].run_with_hooks(self.tokens, fwd_hooks=[(HOOK, lambda value, hook: activation)])


@pytest.fixture(scope="package", params=["HookedTransformer", "TransformerBridge"])
def case(request, tmp_path_factory):
    if request.param == "HookedTransformer":
        return hooked_case()
    folders = save_pair(tmp_path_factory.mktemp("models"), gemma2)
    return case_of(slc.HookedModelPair.from_pretrained(*folders, model_class_name="TransformerBridge"))


def hooked_case():
    return case_of(slc.HookedModelPair(*[random_hooked_transformer(D_MODEL, seed=seed) for seed in (1, 2)]))


def case_of(pair):
    crosscoder = random_crosscoder((D_MODEL, D_MODEL), dtype="float32", threshold=0.1)
    with torch.no_grad():
        crosscoder.b_enc.copy_(0.3 * crosscoder.b_enc)
    return Case(pair, crosscoder, some_tokens(n_prompts=3))


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield
