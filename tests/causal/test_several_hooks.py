"""Patches at several hooks are those of plain TransformerLens hooks: latents read once, edits added hook by hook."""

from contextlib import ExitStack

import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.causal import generate_patched, patched, splice_evals
from sae_lens_crosscoder.causal.patching.validation import validate_continuing
from sae_lens_crosscoder.crosscoders.two_models import TwoModels
from tests.causal.conftest import random_crosscoder
from tests.models.small_models import random_hooked_transformer

HOOKS = ("blocks.0.hook_resid_post", "blocks.1.hook_resid_post")
JOINED = "+".join(HOOKS)
WIDTH, LATENTS = 16, [1, 3]
POSITIONS = torch.tensor([[False, True, True, False, True]] * 2)


def models(n=2):
    return [random_hooked_transformer(WIDTH, seed=seed) for seed in range(1, n + 1)]


def tokens():
    return torch.randint(0, 50, (2, 5), generator=torch.Generator().manual_seed(0))


def crosscoder_over(n_models):
    crosscoder = random_crosscoder((WIDTH,) * (n_models * len(HOOKS)), dtype="float32")
    crosscoder.cfg.hook_names, crosscoder.cfg.metadata.hook_name = HOOKS, JOINED
    return crosscoder


def plain(members, crosscoder, how, edited_models, *, positions=None, coefficient=1.0, amounts=None):
    """Logits of each model on hooks of its own, with the latents read from both models without hooks."""
    caches = [model.run_with_cache(tokens())[1] for model in members]
    stacked = torch.cat([cache[hook] for cache in caches for hook in HOOKS], dim=-1)
    f = crosscoder.encode(stacked)[..., LATENTS]
    mask = torch.ones_like(POSITIONS) if positions is None else positions
    outputs = []
    for m, model in enumerate(members):
        hooks = []
        for i, hook in enumerate(HOOKS):
            source = m * len(HOOKS) + i
            decoder, bias = crosscoder.decoders[source][LATENTS], crosscoder.decoder_biases[source]

            def edit(activation, hook, decoder=decoder, bias=bias):
                new = {
                    "ablate": activation - coefficient * (f @ decoder),
                    "scale": activation + (coefficient - 1) * (f @ decoder),
                    "steer": activation + coefficient * (torch.tensor(amounts or [0.0, 0.0]) @ decoder),
                    "reconstruct": activation + coefficient * (f @ decoder + bias - activation),
                }[how]
                return torch.where(mask[..., None], new, activation)

            hooks.append((hook, edit))
        outputs.append(model.run_with_hooks(tokens(), fwd_hooks=hooks if m in edited_models else []))
    return torch.stack(outputs, dim=-2)


@torch.no_grad()
@pytest.mark.parametrize("n_models", [1, 2])
@pytest.mark.parametrize(
    ("how", "options"),
    [
        ("ablate", {}),
        ("ablate", {"positions": POSITIONS}),
        ("scale", {"coefficient": 2.5}),
        ("steer", {"max_activation": [2.0, 3.0], "coefficient": 0.5}),
        ("reconstruct", {}),
        ("reconstruct", {"coefficient": 0.5, "positions": POSITIONS}),
    ],
)
def test_a_patch_is_that_of_plain_hooks(n_models, how, options):
    members, crosscoder = models(n_models), crosscoder_over(n_models)
    pair = slc.HookedModelPair(*members)
    unpatched = pair(tokens())
    for model in (None, "chat")[:n_models]:
        with patched(pair, crosscoder, LATENTS, how, model=model, **options):
            logits = pair(tokens())
        rest = {name: value for name, value in options.items() if name != "max_activation"}
        edited = {1} if model == "chat" else {0, 1}
        expected = plain(members, crosscoder, how, edited, amounts=options.get("max_activation"), **rest)
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(logits, unpatched, atol=1e-3)
    assert torch.equal(pair(tokens()), unpatched)


@torch.no_grad()
def test_patches_nest_and_read_what_no_patch_has_changed():
    members, crosscoder = models(), crosscoder_over(2)
    pair = slc.HookedModelPair(*members)
    with ExitStack() as stack:
        for latent in LATENTS:
            stack.enter_context(patched(pair, crosscoder, [latent], "ablate"))
        logits = pair(tokens())
    torch.testing.assert_close(logits, plain(members, crosscoder, "ablate", {0, 1}), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_one_model_alone_is_steered_as_in_its_pair():
    members, crosscoder = models(), crosscoder_over(2)
    expected = plain(members, crosscoder, "steer", {0, 1}, amounts=[2.0, 3.0])
    for m, name in enumerate(("base", "chat")):
        with patched(members[m], crosscoder, LATENTS, "steer", model=name, max_activation=[2.0, 3.0]):
            torch.testing.assert_close(members[m](tokens()), expected[:, :, m], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_text_is_generated_under_the_patch_token_by_token():
    pair, crosscoder = slc.HookedModelPair(*models()), crosscoder_over(2)
    with patched(pair, crosscoder, LATENTS, "ablate"):
        answer = generate_patched(pair, tokens(), max_new_tokens=3)
        read = tokens()
        for _ in range(3):
            read = torch.cat([read, pair(read)[:, -1:, -1].argmax(dim=-1)], dim=1)
    assert torch.equal(answer, read[:, 5:])


@torch.no_grad()
def test_every_hook_gets_its_part_of_the_reconstruction():
    members, crosscoder = models(), crosscoder_over(2)
    pair = slc.HookedModelPair(*members)
    table = splice_evals(crosscoder, pair, tokens())
    assert list(table.index) == ["base", "chat"]
    reconstruction = crosscoder(pair.activations(tokens(), JOINED)).split(WIDTH, dim=-1)
    for m, model in enumerate(members):
        hooks = [(hook, lambda _, hook, v=reconstruction[2 * m + i]: v) for i, hook in enumerate(HOOKS)]
        log_p = model.run_with_hooks(tokens(), fwd_hooks=hooks).log_softmax(dim=-1)
        expected = -log_p[:, :-1].gather(-1, tokens()[:, 1:, None]).mean().item()
        assert table.ce_nats_reconstruction.iloc[m] == pytest.approx(expected, rel=1e-4)
        with pair.saes(crosscoder):
            torch.testing.assert_close(pair(tokens())[:, :, m].log_softmax(dim=-1), log_p, rtol=1e-4, atol=1e-4)


def test_what_needs_one_decoder_per_model_is_refused():
    pair, crosscoder = slc.HookedModelPair(*models()), crosscoder_over(2)
    for how in ("replace", "add"):
        with pytest.raises(ValueError, match="carries directions between models"), patched(pair, crosscoder, [0], how):
            pass
    with pytest.raises(ValueError, match="needs one decoder per model, but this crosscoder reads 2 hooks of 2 models"):
        validate_continuing(TwoModels.of(crosscoder), pair)
    alone = slc.HookedModelPair(*models(1))
    with pytest.raises(ValueError, match="read_by='chat' needs two models"):
        patched(alone, crosscoder_over(1), [0], "ablate", read_by="chat").__enter__()
