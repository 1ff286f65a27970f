"""Every way of patching equals an independent reference on plain TransformerLens hooks, with every class of model."""

import itertools

import pandas as pd
import pytest
import torch
from sae_lens.load_model import HookedProxyLM
from transformers import LlamaConfig, LlamaForCausalLM

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.models.tiny import tiny_tokenizer
from tests.causal.conftest import random_crosscoder
from tests.causal.test_patched import hooks_of
from tests.models.small_models import perturbed, random_hooked_transformer, some_tokens
from tests.reference import plain_hooks

pytestmark = pytest.mark.usefixtures("unchecked_types")  # which take longer than the small models
D, D_SAE, VOCAB = 16, 8, 60
CLASSES = {
    "HookedTransformer": "blocks.0.hook_resid_post",
    "TransformerBridge": "blocks.0.hook_resid_post",
    "HookedProxyLM": "model.layers.0",
}
HOWS = ("replace", "add", "ablate", "scale", "steer", "reconstruct")
LATENTS = [5, 0, 3]
AMOUNTS = torch.tensor([3.0, 1.0, 2.0])
MODELS = {None: (0, 1), "base": (0,), "chat": (1,)}


def tiny_llama(noise):
    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer()),
        hidden_size=D,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
        attn_implementation="eager",
    )
    return perturbed(LlamaForCausalLM, config, 0, noise)


@pytest.fixture(scope="module")
def pairs():
    hooked = [random_hooked_transformer(D, seed=seed, d_vocab=VOCAB) for seed in (1, 2)]
    proxies = [HookedProxyLM(tiny_llama(noise), tiny_tokenizer()).eval() for noise in (0.0, 0.1)]
    return {
        "HookedTransformer": slc.HookedModelPair(*hooked),
        "TransformerBridge": slc.HookedModelPair(tiny_llama(0.0), tiny_llama(0.1), tokenizer=tiny_tokenizer()),
        "HookedProxyLM": slc.HookedModelPair(*proxies),
    }


@pytest.fixture(scope="module")
def crosscoders():
    made = {}
    for name, hook_name in CLASSES.items():
        made[name] = random_crosscoder((D, D), threshold=0.1, dtype="float32", d_sae=D_SAE)
        made[name].b_enc.data *= 0.3
        made[name].cfg.metadata.hook_name = hook_name
    return made


TOKENS = some_tokens(n_prompts=2, n_pos=6, d_vocab=VOCAB)
MASKS = {"all": None, "some": torch.tensor([[0, 1, 0, 1, 1, 0], [0] * 6], dtype=torch.bool)}
MASKS["one"] = torch.zeros(2, 6, dtype=torch.bool).index_put((torch.tensor(1), torch.tensor(4)), torch.tensor(True))


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=2e-5)


def options_of(how, coefficient):
    return {"coefficient": coefficient, **({"max_activation": AMOUNTS} if how == "steer" else {})}


def of_reference(crosscoder, latents, how, model, **options):
    """The same patch as a dictionary of the reference's arguments."""
    targets = (0,) if model is None and how in ("replace", "add") else MODELS[model]
    weights = {name: tensor.detach() for name, tensor in crosscoder.state_dict().items()}
    chosen = list(range(D_SAE)) if latents is None else latents
    return {"crosscoder": weights, "latents": chosen, "how": how, "models": targets, **options}


CASES = [
    (name, how, model, mask, read_by, with_bias, chosen)
    for name, how, model, mask, read_by, with_bias, chosen in itertools.product(
        CLASSES, HOWS, MODELS, MASKS, ("own", "chat"), (False, True), ("some", "all")
    )
    if (how in ("replace", "ablate") or not with_bias) and (how != "steer" or chosen == "some")
    if (chosen == "some" or mask == "all") and (mask == "some" or read_by == "own")
]
PAIRS_OF_HOWS = [(name, *hows) for name in CLASSES for hows in itertools.product(HOWS, HOWS)]
GENERATED = [
    (name, how, writer, mask, read_by)
    for name, how, writer in itertools.product(CLASSES, HOWS, ("base", "chat"))
    for mask, read_by in (("all", "own"), ("some", "own"), ("some", "chat"))
]


def test_there_are_more_than_500_cases():
    assert len(CASES) + len(PAIRS_OF_HOWS) + len(GENERATED) > 500


def are_the_reference(pair, name, actual, cases):
    """Results on TOKENS equal those of the reference, each under its own patches."""
    assert len(actual) == len(cases) > 0
    for result, expected in zip(
        actual, plain_hooks.logits(pair.members, [TOKENS] * len(cases), CLASSES[name], cases), strict=True
    ):
        close(result, expected)


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("how", HOWS)
def test_a_patched_pair_is_both_models_on_plain_hooks(pairs, crosscoders, name, how):
    """Every direction, mask, reader, bias, set of latents and sign of the coefficient."""
    pair, crosscoder, coefficients = pairs[name], crosscoders[name], itertools.cycle((1.0, -0.7))
    actual, cases = [pair(TOKENS)], [[]]
    for of_class, of_how, model, mask, read_by, with_bias, chosen in CASES:
        if (of_class, of_how) != (name, how):
            continue
        latents = LATENTS if chosen == "some" else None
        options = options_of(how, next(coefficients)) | {"with_bias": with_bias}
        everywhere = {"positions": MASKS[mask], "read_by": read_by}
        with slc.patched(pair, crosscoder, latents, how, model=model, **options, **everywhere):
            actual.append(pair(TOKENS))
        cases.append([of_reference(crosscoder, latents, how, model, **options, **everywhere)])
        assert (actual[-1] - actual[0]).abs().max() > 1e-3 or how == "scale"
    assert hooks_of(pair) == []
    close(pair(TOKENS), actual[0])
    are_the_reference(pair, name, actual, cases)


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("outer", HOWS)
def test_nested_patches_are_those_of_the_reference_one_after_the_other(pairs, crosscoders, name, outer):
    """Each reads the activations before any patch; an inner block that raises takes along its own edit alone."""
    pair, crosscoder, actual, cases = pairs[name], crosscoders[name], [], []
    for number, inner in enumerate(HOWS):
        read_by = ("own", "chat")[number % 2]
        first = dict(model=None, positions=MASKS["some"], read_by=read_by, **options_of(outer, 0.8))
        second = dict(model="chat", positions=None, **options_of(inner, 1.5))
        patches = [
            of_reference(crosscoder, LATENTS, outer, first["model"], **{k: first[k] for k in first if k != "model"}),
            of_reference(crosscoder, LATENTS, inner, second["model"], **{k: second[k] for k in second if k != "model"}),
        ]
        with slc.patched(pair, crosscoder, torch.tensor(LATENTS), outer, **first):
            with slc.patched(pair, crosscoder, pd.Index(LATENTS), inner, **second):
                actual.append(pair(TOKENS))
            with pytest.raises(ZeroDivisionError), slc.patched(pair, crosscoder, LATENTS, inner, **second):
                pair.run_with_hooks(TOKENS, fwd_hooks=[(CLASSES[name], lambda value, hook: 1 / 0)])
            actual.append(pair(TOKENS))
        cases += [patches, patches[:1]]
        assert hooks_of(pair) == []
    are_the_reference(pair, name, actual, cases)


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("how", HOWS)
def test_generation_with_caches_writes_what_full_passes_write(pairs, crosscoders, name, how):
    pair, crosscoder, actual, cases, writers = pairs[name], crosscoders[name], [], [], []
    for of_class, of_how, writer, mask, read_by in GENERATED:
        if (of_class, of_how) != (name, how):
            continue
        everywhere = {"positions": MASKS[mask], "read_by": read_by, **options_of(how, 1.0)}
        with slc.patched(pair, crosscoder, LATENTS, how, **everywhere):
            actual.append(slc.causal.generate_patched(pair, TOKENS, writer, max_new_tokens=3, end=-1))
        cases.append([of_reference(crosscoder, LATENTS, how, None, **everywhere)])
        writers.append(0 if writer == "base" else 1)
    expected = plain_hooks.written(pair.members, [TOKENS] * len(cases), CLASSES[name], cases, writers, 3)
    assert len(actual) == 6
    assert all(torch.equal(*both) for both in zip(actual, expected, strict=True))


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("mask", MASKS)
def test_one_model_alone_is_steered_as_in_its_pair(pairs, crosscoders, name, mask):
    pair, crosscoder = pairs[name], crosscoders[name]
    for m, model in enumerate(("base", "chat")):
        options = options_of("steer", -0.5) | {"positions": MASKS[mask]}
        patch = of_reference(crosscoder, LATENTS, "steer", model, **options)
        (expected,) = plain_hooks.logits(pair.members, [TOKENS], CLASSES[name], [[patch]])
        with slc.patched(pair.members[m], crosscoder, LATENTS, "steer", model=model, **options) as host:
            close(host(TOKENS, return_type="logits"), expected[:, :, m])


def test_two_widths_are_patched_each_in_its_own():
    pair = slc.HookedModelPair(*[random_hooked_transformer(d, seed=d, d_vocab=VOCAB) for d in (D, D + 8)])
    crosscoder, actual, cases = random_crosscoder((D, D + 8), threshold=0.1, dtype="float32", d_sae=D_SAE), [], []
    for how, model in itertools.product(("ablate", "scale", "steer", "reconstruct"), MODELS):
        with slc.patched(pair, crosscoder, LATENTS, how, model=model, **options_of(how, 0.6)):
            actual.append(pair(TOKENS))
        cases.append([of_reference(crosscoder, LATENTS, how, model, **options_of(how, 0.6))])
    are_the_reference(pair, "HookedTransformer", actual, cases)
