"""Patches of models that are read at hooks of their own are those of plain TransformerLens hooks."""

import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.causal import Responses, generate_patched, patched, splice_evals
from sae_lens_crosscoder.causal.forward.response_batches import response_batches
from sae_lens_crosscoder.causal.patching.validation import validate_continuing
from sae_lens_crosscoder.crosscoders.two_models import TwoModels
from tests.causal.conftest import random_crosscoder
from tests.models.small_models import random_hooked_transformer, some_tokens

HOOKS = ("blocks.0.hook_resid_post", "blocks.2.hook_resid_post")
WIDTH, LATENTS = 16, [1, 3]
pytestmark = pytest.mark.usefixtures("unchecked_types")


@pytest.fixture(scope="module")
def members():
    return [random_hooked_transformer(WIDTH, seed=depth, n_layers=depth) for depth in (2, 4)]


@pytest.fixture(scope="module")
def crosscoder():
    crosscoder = random_crosscoder((WIDTH, WIDTH), dtype="float32")
    crosscoder.cfg.metadata.hook_name = "|".join(HOOKS)
    return crosscoder


def read(members):
    models = zip(members, HOOKS, strict=True)
    return [model.run_with_cache(some_tokens())[1][hook] for model, hook in models]


def edited(members, m, activation):
    """Logits of one model with its activation replaced at its own hook."""
    return members[m].run_with_hooks(some_tokens(), fwd_hooks=[(HOOKS[m], lambda _, hook: activation)])


@torch.no_grad()
@pytest.mark.parametrize(
    ("how", "options"),
    [("ablate", {}), ("replace", {"model": "chat"}), ("steer", {"max_activation": [2.0, 3.0]}), ("reconstruct", {})],
)
def test_a_patch_is_that_of_plain_hooks(members, crosscoder, how, options):
    pair, h = slc.HookedModelPair(*members), read(members)
    f = crosscoder.encode(torch.cat(h, dim=-1))[..., LATENTS]
    with patched(pair, crosscoder, LATENTS, how, **options):
        logits = pair(some_tokens())
    decoders = [decoder[LATENTS] for decoder in crosscoder.decoders]
    for m in range(2):
        expected = {
            "ablate": h[m] - f @ decoders[m],
            "replace": h[m] + m * (f @ (decoders[0] - decoders[1])),
            "steer": h[m] + torch.tensor([2.0, 3.0]) @ decoders[m],
            "reconstruct": f @ decoders[m] + crosscoder.decoder_biases[m],
        }[how]
        torch.testing.assert_close(logits[:, :, m], edited(members, m, expected), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_one_model_alone_is_steered_at_its_own_hook(members, crosscoder):
    for m, name in enumerate(("base", "chat")):
        with patched(members[m], crosscoder, LATENTS, "steer", model=name, max_activation=[2.0, 3.0]):
            steered = members[m](some_tokens())
        added = torch.tensor([2.0, 3.0]) @ crosscoder.decoders[m][LATENTS]
        torch.testing.assert_close(steered, edited(members, m, read(members)[m] + added), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_chat_model_reads_what_the_base_model_had_at_its_hook(members, crosscoder):
    pair = slc.HookedModelPair(*members)
    with patched(pair, crosscoder, LATENTS, "ablate", model="base", coefficient=0.0, read_by="chat"):
        handed = pair(some_tokens())[:, :, 1]
    torch.testing.assert_close(handed, edited(members, 1, read(members)[0]), rtol=1e-4, atol=1e-4)
    response = torch.ones_like(some_tokens(), dtype=torch.bool)
    response[:, 0] = False
    responses = Responses(some_tokens(), response)
    validate_continuing(TwoModels.of(crosscoder), pair)
    batch = next(response_batches(TwoModels.of(crosscoder), pair, responses, batch_size=2))
    for parts, expected in ((batch.parts[0], handed), (batch.parts[1], members[1](some_tokens()))):
        torch.testing.assert_close(batch.logits(parts), expected[batch.predicts], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_text_is_generated_and_losses_are_measured_at_each_models_hook(members, crosscoder):
    pair, tokens = slc.HookedModelPair(*members), some_tokens()
    with patched(pair, crosscoder, LATENTS, "ablate"):
        answer = generate_patched(pair, tokens, max_new_tokens=2)
        expected = torch.cat([tokens, pair(tokens)[:, -1:, -1].argmax(dim=-1)], dim=1)
        expected = torch.cat([expected, pair(expected)[:, -1:, -1].argmax(dim=-1)], dim=1)
    assert torch.equal(answer, expected[:, tokens.shape[1] :])
    table = splice_evals(crosscoder, pair, tokens)
    reconstruction = crosscoder(torch.cat(read(members), dim=-1)).split(WIDTH, dim=-1)
    for m in range(2):
        log_p = edited(members, m, reconstruction[m]).log_softmax(dim=-1)
        loss = -log_p[:, :-1].gather(-1, tokens[:, 1:, None]).mean().item()
        assert table.ce_nats_reconstruction.iloc[m] == pytest.approx(loss, rel=1e-4)


def test_the_first_look_compares_models_at_the_same_hooks(members):
    pair, tokens = slc.HookedModelPair(*members), some_tokens()
    with pytest.raises(ValueError, match=r"has a hook per model.*Name hooks that both models have"):
        slc.causal.locate_difference(pair, tokens, tokens >= 0, ["|".join(HOOKS)])
