"""A latent's code swapped between models: by the definition, on a planted difference, and on models that agree."""

import copy

import pandas as pd
import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.causal import swap_effects
from tests.causal.conftest import random_crosscoder
from tests.models.small_models import random_hooked_transformer, some_tokens
from tests.reference import swap as reference

HOOK, WIDTH = "blocks.0.hook_resid_post", 16
MASK = torch.ones(2, 12, dtype=torch.bool)
MASK[0, :3] = False
pytestmark = pytest.mark.usefixtures("unchecked_types")


def eval_data(pair, **fields):
    return slc.EvalData(pair=pair, tokens=some_tokens(), token_mask=MASK, max_norm_ratio=None, **fields)


def test_the_effect_is_that_of_plain_hooks_and_its_definition():
    members = [random_hooked_transformer(WIDTH, seed=seed) for seed in (1, 2)]
    crosscoder = random_crosscoder((WIDTH, WIDTH), dtype="float32", d_sae=4)
    crosscoder.cfg.activation_scales = (1.0, 2.0)
    crosscoder.W_dec[3, :WIDTH] *= 0.01  # the chat model's alone
    table = swap_effects(crosscoder, eval_data(slc.HookedModelPair(*members)), [2, 0])
    used = MASK.flatten().tolist()
    read = [model.run_with_cache(some_tokens())[1][HOOK] for model in members]
    tokens = [list(parts) for parts in zip(*(part.flatten(0, 1).tolist() for part in read), strict=True)]
    encoders = [part.tolist() for part in crosscoder.encoders]
    thresholds = crosscoder.threshold.tolist()
    weights = (encoders, crosscoder.b_enc.tolist(), thresholds)
    decoders = [part.tolist() for part in crosscoder.decoders]
    codes = reference.codes(tokens, used, (1.0, 2.0), *weights, ((), [3]), decoders)
    logs = [model(some_tokens()).log_softmax(-1).flatten(0, 1).tolist() for model in members]
    assert list(table.index) == [2, 0]
    for m, name in enumerate(("base", "chat")):
        before = reference.mean_kl(logs[1 - m], logs[m], used)
        for latent in (2, 0):
            decoder = crosscoder.decoders[m].tolist()
            activation = read[m].flatten(0, 1).tolist()
            new = torch.tensor(reference.edited(activation, codes[m], codes[1 - m], decoder, latent)).view_as(read[m])
            logits = members[m].run_with_hooks(some_tokens(), fwd_hooks=[(HOOK, lambda _, hook, new=new: new)])
            swapped = logits.log_softmax(-1).flatten(0, 1).tolist()
            after = reference.mean_kl(logs[1 - m], swapped, used)
            row = table.loc[latent]
            assert row[f"kl_before_{name}"] == pytest.approx(before, rel=1e-4)
            assert row[f"kl_after_{name}"] == pytest.approx(after, rel=1e-4)
            assert row[f"kl_change_{name}"] == pytest.approx(after - before, rel=1e-3, abs=1e-5)
            assert row[f"kl_moved_{name}"] == pytest.approx(reference.mean_kl(logs[m], swapped, used), rel=1e-4)
            assert row[f"kl_change_{name}_low"] <= row[f"kl_change_{name}"] <= row[f"kl_change_{name}_high"]


def read_at(model):
    return model.run_with_cache(some_tokens())[1][HOOK]


@pytest.fixture(scope="module")
def planted():
    """A chat model that uses one direction four times as strongly, and a crosscoder with a latent for it."""
    base = random_hooked_transformer(WIDTH, seed=1)
    direction = torch.nn.functional.normalize(torch.randn(WIDTH, generator=torch.Generator().manual_seed(0)), dim=0)
    chat = copy.deepcopy(base)
    with torch.no_grad():
        for weight in (chat.blocks[0].mlp.W_out, chat.blocks[0].mlp.b_out):
            weight += 3 * (weight @ direction)[..., None] * direction
        added = (read_at(chat) - read_at(base)) @ direction
        chat.blocks[0].mlp.b_out -= added.mean() * direction  # a constant is no use of a latent
    other = torch.nn.functional.normalize(torch.randn(WIDTH, generator=torch.Generator().manual_seed(1)), dim=0)
    crosscoder = random_crosscoder((WIDTH, WIDTH), dtype="float32", d_sae=2)
    directions = torch.stack([direction, other - (other @ direction) * direction])
    with torch.no_grad():
        crosscoder.W_dec.copy_(torch.cat([directions, directions], dim=-1))
        crosscoder.W_enc.copy_(crosscoder.W_dec.T / 2)
        crosscoder.b_enc.fill_(50.0)  # always on, so that the code is a projection
        crosscoder.threshold.fill_(0.0)
    return slc.HookedModelPair(base, chat), crosscoder


def test_swapping_the_changed_latent_gives_the_other_models_predictions(planted):
    pair, crosscoder = planted
    data = slc.EvalData(pair=pair, tokens=some_tokens(), max_norm_ratio=None)
    table = swap_effects(crosscoder, data, [0, 1])
    changed, unchanged = table.loc[0], table.loc[1]
    for name in ("base", "chat"):
        assert changed[f"kl_after_{name}"] < 1e-3 * changed[f"kl_before_{name}"]
        assert changed[f"kl_change_{name}_high"] < 0
        assert changed[f"kl_moved_{name}"] > 0
        assert abs(unchanged[f"kl_change_{name}"]) < 1e-3 * unchanged[f"kl_before_{name}"]


def test_models_that_agree_are_not_moved():
    base = random_hooked_transformer(WIDTH, seed=1)
    crosscoder = random_crosscoder((WIDTH, WIDTH), dtype="float32", d_sae=3)
    table = swap_effects(crosscoder, eval_data(slc.HookedModelPair(base, copy.deepcopy(base))), [0, 1, 2])
    assert (table.filter(regex="kl_").to_numpy() == 0).all()
    assert (table["code_base"] == table["code_chat"]).all()


def test_batches_do_not_matter(planted):
    pair, crosscoder = planted
    one, all_at_once = (swap_effects(crosscoder, eval_data(pair, batch_size=n), pd.Index([1])) for n in (1, 2))
    torch.testing.assert_close(*(torch.tensor(t.to_numpy()) for t in (one, all_at_once)), rtol=1e-4, atol=1e-6)


def test_what_cannot_be_swapped_is_refused(planted):
    pair, crosscoder = planted
    with pytest.raises(ValueError, match="must be different latents, from 0 to 1, and at least one"):
        swap_effects(crosscoder, eval_data(pair), [])
    with pytest.raises(ValueError, match="must be different latents"):
        swap_effects(crosscoder, eval_data(pair), [2])
    with pytest.raises(ValueError, match="swap_effects runs the models"):
        swap_effects(crosscoder, slc.EvalData(activations=torch.zeros(3, 2 * WIDTH)), [0])
    with pytest.raises(ValueError, match="the crosscoder's sources have widths"):
        swap_effects(random_crosscoder((WIDTH, 24), dtype="float32"), eval_data(pair), [0])
