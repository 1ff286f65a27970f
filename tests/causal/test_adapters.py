"""Laws of causal work on adapters with one copy of the weights: the merged pair's numbers, in either direction."""

from typing import Any

import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.models.tiny import dialogues
from tests.causal.conftest import HOOK, LATENTS, random_crosscoder
from tests.models.adapters import save_adapter, save_base, save_merged
from tests.models.small_models import some_tokens

TOLERANCE = {"rtol": 1e-4, "atol": 5e-5}
ASKED = [messages[:1] for messages in dialogues(6, seed=3, split="held_out")]
MIDDLE = "blocks.2.hook_resid_post"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """A pair on one copy of the weights, and the same pair with the adapter merged into a second copy."""
    folder = tmp_path_factory.mktemp("adapters")
    base = save_base(folder / "base")
    adapter = save_adapter(folder / "adapter", base)
    chats = (f"{base}+adapter={adapter}", save_merged(folder / "merged", base, adapter))
    options: dict[str, Any] = {"model_class_name": "TransformerBridge"}
    return [slc.HookedModelPair.from_pretrained(base, chat, **options) for chat in chats]


def crosscoder_at(hook_name):
    crosscoder = random_crosscoder((32, 32), threshold=0.5, dtype="float32")
    crosscoder.cfg.metadata.hook_name = hook_name
    return crosscoder


def of_both(pairs, function):
    with torch.no_grad():
        return [function(pair) for pair in pairs]


class TestEqualsTheMergedPair:
    @pytest.mark.parametrize("hook_name", [HOOK, MIDDLE])
    @pytest.mark.parametrize("how", ["replace", "add", "ablate", "steer"])
    @pytest.mark.parametrize("model", ["base", "chat"])
    def test_patched_in_either_direction(self, pairs, hook_name, how, model):
        crosscoder, tokens = crosscoder_at(hook_name), some_tokens(d_vocab=150)
        options = {"max_activation": [3.0, 1.0, 2.0]} if how == "steer" else {}

        def run(pair):
            with slc.patched(pair, crosscoder, LATENTS, how, model=model, **options):
                return pair(tokens)

        shared, merged = of_both(pairs, run)
        torch.testing.assert_close(shared, merged, **TOLERANCE)
        changed = (shared - of_both(pairs[:1], lambda pair: pair(tokens))[0]).abs().amax(dim=(0, 1, 3)) > 1e-3
        assert changed.tolist() == [model == "base", model == "chat"]

    @pytest.mark.parametrize("writer", ["base", "chat"])
    def test_generated_under_a_patch_with_caches(self, pairs, writer):
        crosscoder, tokens = crosscoder_at(HOOK), some_tokens(d_vocab=150)

        def write(pair):
            plain = slc.causal.generate_patched(pair, tokens, writer, max_new_tokens=8, end=-1)
            with slc.patched(pair, crosscoder, LATENTS, "steer", max_activation=[30.0, 10.0, 20.0]):
                return plain, slc.causal.generate_patched(pair, tokens, writer, max_new_tokens=8, end=-1)

        (plain, steered), expected = of_both(pairs, write)
        assert torch.equal(plain, expected[0])
        assert torch.equal(steered, expected[1])
        assert not torch.equal(plain, steered)

    def test_responses_of_the_chat_model(self, pairs):
        shared, merged = of_both(pairs, lambda pair: slc.causal.generate_responses(pair, ASKED, max_new_tokens=8))
        assert torch.equal(shared.tokens, merged.tokens)
        assert torch.equal(shared.response, merged.response)

    @pytest.mark.parametrize("side", ["base", "chat"])
    @pytest.mark.parametrize("layer", [0, 2, 3])
    def test_resumed_from_a_hook(self, pairs, side, layer):
        tokens, hook_name = some_tokens(d_vocab=150), f"blocks.{layer}.hook_resid_post"

        def resume(pair):
            model = getattr(pair, side)
            residual = model.run_with_cache(tokens, names_filter=[hook_name])[1][hook_name].repeat(2, 1, 1, 1)
            residual[1, :, 5:] = residual[1, :, 5:].flip(-1)
            return slc.causal.resume_from(model, residual, hook_name, tokens, progress=False)

        shared, merged = of_both(pairs, resume)
        torch.testing.assert_close(shared, merged, **TOLERANCE)
        assert (shared[0] - shared[1]).abs().max() > 1e-2

    def test_latent_effects_and_logit_attribution(self, pairs):
        directions = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
        shared, merged = of_both(pairs, lambda pair: slc.causal.logit_attribution(pair.chat, directions))
        torch.testing.assert_close(shared, merged, **TOLERANCE)
