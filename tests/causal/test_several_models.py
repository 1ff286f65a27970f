"""Two models of a family, chosen by name: all causal work is that of the crosscoder of these two alone.

The first and the third model are one model, so a crosscoder of the last two with the sum of their encoders has the
same codes.
"""

import copy

import pandas as pd
import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.causal import (
    Responses,
    causal_effects,
    causal_ladder,
    generate_patched,
    intervention,
    kl_to_chat,
    latent_effects,
    patched,
    swap_effects,
)
from sae_lens_crosscoder.causal.experiment.setups import Setup
from sae_lens_crosscoder.data import Contrast
from sae_lens_crosscoder.models.tiny import tiny_tokenizer
from tests.causal.conftest import HOOK, random_crosscoder
from tests.models.small_models import random_hooked_transformer, some_tokens

WIDTH, IDS, MODELS, NAMES = 16, [7, 2, 5], ("model_1", "model_2"), ("start", "middle", "end")
pytestmark = pytest.mark.usefixtures("unchecked_types")


@pytest.fixture(scope="module")
def family():
    """The pair of three, its crosscoder, and the pair and the crosscoder of the last two."""
    first, second = (random_hooked_transformer(WIDTH, seed=seed) for seed in (1, 2))
    for model in (first, second):
        model.tokenizer = tiny_tokenizer()
    pair = slc.HookedModelPair(first, second, copy.deepcopy(first), model_names=NAMES)
    crosscoder = random_crosscoder((WIDTH,) * 3, dtype="float32", threshold=0.1)
    crosscoder.cfg.metadata.sources = [{"model_name": name} for name in NAMES]
    view = random_crosscoder((WIDTH,) * 2, dtype="float32", threshold=0.1)
    (e_0, e_1, e_2), (_, d_1, d_2), (_, b_1, b_2) = crosscoder.encoders, crosscoder.decoders, crosscoder.decoder_biases
    with torch.no_grad():
        view.W_enc.copy_(torch.cat([e_1, e_0 + e_2], dim=-1).T)
        view.W_dec.copy_(torch.cat([d_1, d_2], dim=-1))
        view.b_dec.copy_(torch.cat([b_1, b_2]))
        view.b_enc.copy_(crosscoder.b_enc)
    return pair, crosscoder, pair.of(*MODELS), view


@pytest.fixture(scope="module")
def responses():
    tokens = some_tokens(n_prompts=4)
    response, template = torch.zeros_like(tokens, dtype=torch.bool), tokens % 3 == 0
    response[:, 4:9] = response[1, 10:] = True
    return Responses(tokens, response, template)


def both(family, function, *args, **options):
    """The result for the two chosen of three, and for the crosscoder of these two."""
    pair, crosscoder, pair_of_two, view = family
    return function(crosscoder, pair, *args, models=MODELS, **options), function(view, pair_of_two, *args, **options)


def assert_same_tables(chosen, expected):
    pd.testing.assert_frame_equal(chosen, expected, rtol=1e-3, atol=1e-5)
    numbers = chosen.select_dtypes("number")
    assert not numbers.isna().all().any(), "a column of nan"


@pytest.mark.parametrize("how", ["replace", "add", "ablate", "scale", "steer", "reconstruct"])
def test_a_patch_edits_the_chosen_two_and_no_other(family, how):
    pair, crosscoder, pair_of_two, view = family
    tokens = some_tokens()
    options = {"coefficient": 0.7, **({"max_activation": 2.0} if how == "steer" else {})}
    plain = pair(tokens)
    with patched(pair, crosscoder, IDS, how, models=MODELS, **options):
        chosen = pair(tokens)
    with patched(pair_of_two, view, IDS, how, **options):
        expected = pair_of_two(tokens)
    torch.testing.assert_close(chosen[:, :, 1:], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(chosen[:, :, 0], plain[:, :, 0])
    assert not torch.allclose(chosen[:, :, 1], plain[:, :, 1])


def test_the_second_reads_what_the_first_has(family):
    pair, crosscoder, pair_of_two, view = family
    tokens = some_tokens()
    with patched(pair, crosscoder, IDS, "replace", model="model_1", models=MODELS, read_by="chat"):
        chosen = pair(tokens)[:, :, 2]
        answer = generate_patched(pair, tokens, "model_2", max_new_tokens=3, end=-1)
        by_name = generate_patched(pair, tokens, "end", max_new_tokens=3, end=-1)
    with patched(pair_of_two, view, IDS, "replace", read_by="chat"):
        expected = pair_of_two(tokens)[:, :, 1]
        torch.testing.assert_close(chosen, expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(answer, generate_patched(pair_of_two, tokens, max_new_tokens=3, end=-1))
    assert torch.equal(answer, by_name)


def test_the_causal_experiment(family, responses):
    latents = pd.DataFrame(
        {
            "delta_norm": torch.linspace(0.5, 1, 10).tolist(),
            "nu_error": torch.linspace(0.1, 1, 10).tolist(),
            "nu_reconstruction": torch.linspace(0.9, 0.2, 10).tolist(),
            "dead": False,
            "label": ["chat_only"] * 3 + ["shared"] * 7,
            "verdict": ["chat_specific"] * 2 + ["undetermined"] * 8,
        }
    )
    chosen, expected = both(family, causal_effects, responses, latents, pool_size=6, sets={"mine": IDS}, with_bias=True)
    assert_same_tables(chosen.table, expected.table)
    assert_same_tables(chosen.contrasts, expected.contrasts)
    of_chat = chosen.table.set_index("setup").loc["chat"]
    assert (of_chat["kl_nats"].abs().dropna() < 1e-5).all()
    pair, crosscoder, *_ = family
    setup = Setup("mine", "base", intervention(crosscoder, IDS, "add", models=MODELS), "add", len(IDS))
    sums = kl_to_chat(crosscoder, pair, responses, [setup], models=("middle", "end"))
    mine = [(measured.name, measured.variant) for measured in chosen.sums.setups].index(("mine", "add"))
    torch.testing.assert_close(sums.totals[:, 0], chosen.sums.totals[:, mine])


def test_the_effects_of_single_latents(family, responses):
    chosen, expected = both(family, latent_effects, responses, IDS, k=2)
    numbers = ["kl_change_added", "kl_change_removed", "n_active"]
    assert_same_tables(chosen[numbers], expected[numbers])
    assert [texts[0][0] for texts in chosen["writes"]] == [texts[0][0] for texts in expected["writes"]]
    assert (chosen["n_active"] > 0).any()


def test_the_ladder(family):
    positive = [[1, 5, 6], [1, 7, 8, 9], [1, 4, 4], [1, 9, 3, 3]]
    contrast = Contrast.from_tokens("a", positive, [[1, 12, 13], [1, 14, 15, 9], [1, 16, 17], [1, 18, 19]])
    options = {"rungs": (1,), "max_new_tokens": 3}
    chosen, expected = both(family, causal_ladder, contrast, IDS, lambda text: len(text) > 12, **options)
    pd.testing.assert_frame_equal(chosen.table, expected.table, rtol=1e-3, atol=1e-4)
    assert chosen.table.drop(index=["base", "chat"])["brought_back"].abs().min() > 0


def test_codes_are_swapped(family):
    pair, crosscoder, pair_of_two, view = family
    options = {"tokens": some_tokens(), "max_norm_ratio": None}
    chosen = swap_effects(crosscoder, slc.EvalData(pair=pair, **options), IDS, models=MODELS)
    expected = swap_effects(view, slc.EvalData(pair=pair_of_two, **options), IDS)
    renamed = expected.rename(columns=lambda name: name.replace("base", "model_1").replace("chat", "model_2"))
    assert_same_tables(chosen, renamed)


def test_the_other_order_exchanges_the_models(family):
    pair, crosscoder, *_ = family
    edits = [intervention(crosscoder, IDS, "replace", models=models) for models in (MODELS, MODELS[::-1])]
    stacked = pair.activations(some_tokens(), HOOK)
    forward, back = (edit.deltas(stacked) for edit in edits)
    assert [delta is None for delta in forward] == [True, False, True]
    assert [delta is None for delta in back] == [True, True, False]
    torch.testing.assert_close(forward[1], -back[2])


def test_work_that_needs_two_models_is_refused_by_name(family, responses):
    pair, crosscoder, _, _ = family
    contrast = Contrast.from_tokens("a", [[1, 2]] * 4, [[1, 3]] * 4)
    data = slc.EvalData(pair=pair, tokens=some_tokens())
    calls = {
        "how='replace'": lambda: intervention(crosscoder, IDS, "replace"),
        "read_by='chat'": lambda: patched(pair, crosscoder, IDS, "ablate", read_by="chat").__enter__(),
        "causal_effects": lambda: causal_effects(crosscoder, pair, responses, pd.DataFrame()),
        "kl_to_chat": lambda: kl_to_chat(crosscoder, pair, responses, [Setup("none")]),
        "latent_effects": lambda: latent_effects(crosscoder, pair, responses, IDS),
        "causal_ladder": lambda: causal_ladder(crosscoder, pair, contrast, IDS, bool),
        "swap_effects": lambda: swap_effects(crosscoder, data, IDS),
    }
    for name, call in calls.items():
        with pytest.raises(ValueError, match=f"{name} compares two models, but this crosscoder reads 3.*models="):
            call()
    with pytest.raises(ValueError, match="must name two sources of the crosscoder"):
        intervention(crosscoder, IDS, "replace", models=("model_1", "nobody"))
    with pytest.raises(ValueError, match="model='model_0' must be one of models"):
        intervention(crosscoder, IDS, "ablate", model="model_0", models=MODELS)
    with pytest.raises(ValueError, match=r"no column 'delta_norm'.*one of diagnosis.pairs"):
        causal_effects(crosscoder, pair, responses, pd.DataFrame({"delta_norm_model_1": []}), models=MODELS)
    with pytest.raises(ValueError, match="Unknown writer='nobody'"):
        generate_patched(pair, some_tokens(), "nobody")


def test_a_third_model_of_another_width_does_not_matter():
    crosscoder = random_crosscoder((WIDTH, 24, WIDTH), dtype="float32", threshold=0.1)
    stacked = torch.randn(5, 2 * WIDTH + 24, generator=torch.Generator().manual_seed(0))
    deltas = intervention(crosscoder, IDS, "replace", models=("model_0", "model_2")).deltas(stacked)
    f, decoders = crosscoder.encode(stacked)[:, IDS], crosscoder.decoders
    torch.testing.assert_close(deltas[0], f @ (decoders[2] - decoders[0])[IDS])
    with pytest.raises(ValueError, match=r"model_0 and model_1 have widths \(16, 24\)"):
        intervention(crosscoder, IDS, "replace", models=("model_0", "model_1"))
