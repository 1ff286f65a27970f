"""What `explore` gathers is what its parts say, of the same tokens."""

from importlib import import_module

import numpy as np
import pandas as pd
import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.causal import kl_between_models
from sae_lens_crosscoder.models.pair import HookedModelPair
from sae_lens_crosscoder.models.tiny import TINY_HOOK, tiny_dataset, tiny_tokenizer
from sae_lens_crosscoder.report.explorer.token_texts import TokenTexts

ROWS = tiny_dataset(12, seed=8)
TOKENS = torch.tensor(ROWS["input_ids"])


@pytest.fixture(scope="module")
def looked_at():
    """A crosscoder whose first two latents are twins, one for each model, and whose third is refusal."""
    pair = slc.HookedModelPair.from_pretrained("tiny-base", "tiny-chat")
    crosscoder = slc.ReLUCrosscoder(slc.ReLUCrosscoderConfig(d_model=96, d_sae=12))
    generator = torch.Generator().manual_seed(1)
    contrasts = slc.data.tiny_contrasts(n_pairs=8, names=["refusal"])
    positive, negative = slc.activations.contrast_rows(pair, contrasts[0], TINY_HOOK).part(held_out=False)
    refusal = (positive.mean(dim=0) - negative.mean(dim=0)).detach()
    with torch.no_grad():
        crosscoder.W_enc.copy_(torch.randn(192, 12, generator=generator) / 20)
        crosscoder.W_dec.copy_(torch.randn(12, 192, generator=generator))
        crosscoder.W_dec[0, :96] = 0
        crosscoder.W_dec[1] = crosscoder.W_dec[0].roll(96)
        crosscoder.W_enc[:, 2] = crosscoder.W_dec[2] = refusal / refusal.norm()
        crosscoder.b_enc[11] = -1e3  # dead
    metadata = crosscoder.cfg.metadata
    metadata.model_name, metadata.chat_model_name, metadata.hook_name = "tiny-base", "tiny-chat", TINY_HOOK
    asked = [[{"role": "user", "content": f"where does {name} live ?"}] for name in ("anna", "ben")]
    said = slc.causal.generate_responses(pair, asked, max_new_tokens=16)
    data = slc.EvalData(pair=pair, tokens=TOKENS)
    diagnosis = slc.diagnose(crosscoder, data, min_active=1)
    diagnosis.latents.loc[[0, 1], "verdict"] = ["chat_specific", "base_specific"]
    use = slc.latent_use(crosscoder, data, groups=slc.data.TokenGroups(TOKENS % 2, ("even", "odd")), min_active=1)
    found = slc.explore(crosscoder, data, diagnosis, contrasts=contrasts, responses=said, use=use, n_random=3)
    return pair, crosscoder, said, diagnosis, found


def test_records_say_what_the_parts_say(looked_at):
    pair, crosscoder, _, diagnosis, found = looked_at
    table = diagnosis.latents
    kl = kl_between_models(pair, TOKENS)
    attribution = slc.causal.logit_attribution(pair.base, crosscoder.decoders[0].detach())
    acts = crosscoder.encode(pair.activations(TOKENS, TINY_HOOK)).detach()
    words = tiny_tokenizer().convert_ids_to_tokens
    for latent in range(12):
        record = found[latent]
        assert record.numbers.items() >= table.loc[latent].dropna().to_dict().items()
        assert sum(record.histogram) == int((acts[..., latent] > 0).sum())
        assert [text.strip() for text, _ in record.raises["base"]] == words(
            attribution[latent].topk(8).indices.tolist()
        )
        for shown in (*record.top, *(each for band in record.quantiles for each in band)):
            first = shown.example.position - shown.example.peak
            window = (shown.example.prompt, slice(first, first + len(shown.texts)))
            assert [text.strip() for text in shown.texts] == words(TOKENS[window].tolist())
            assert shown.kl == pytest.approx(kl[window].tolist(), abs=1e-4)
    assert found[11].top == ()
    assert len(found[3].top) > 5
    norms = crosscoder.W_enc.detach()[96:].norm(dim=0)
    np.testing.assert_allclose(found.table.enc_norm_chat, norms, rtol=1e-5)


def test_the_use_of_latents_joins_the_table_and_the_records(looked_at):
    *_, found = looked_at
    assert found.use_groups == ("even", "odd")
    pd.testing.assert_series_equal(found.table.log_use_ratio, found.use.latents.log_use_ratio)
    in_odd = found.use.by_group[found.use.by_group.group == "odd"]
    assert found[4].uses[1][1] == in_odd.rate_chat[4]


def test_places_and_template_share_are_those_of_the_generators_roles(looked_at):
    pair, crosscoder, _, _, found = looked_at
    is_on = crosscoder.encode(pair.activations(TOKENS, TINY_HOOK)).detach() > 0
    roles = torch.tensor(ROWS["role"])
    is_bos = tiny_tokenizer().bos_token_id == TOKENS
    names = ("text", "user", "assistant", "template")
    n_on = {name: is_on[(roles == role) & ~is_bos].sum(dim=0) for role, name in enumerate(names)}
    for name, n in n_on.items():
        assert [found[latent].places[name]["n_active"] for latent in range(12)] == n.tolist()
    share = n_on["template"] / (n_on["template"] + n_on["user"] + n_on["assistant"])
    np.testing.assert_allclose(found.table.frac_template, share, rtol=1e-6)
    assert np.isnan(found.table.frac_template[11])


def test_twins_effects_and_concepts_reach_their_latents(looked_at):
    pair, crosscoder, said, _, found = looked_at
    (twin,), (back,) = found[0].twins, found[1].twins
    assert (twin["latent"], back["latent"]) == (1, 0)
    assert twin["cosine"] == pytest.approx(1)
    assert (twin["n_only_own"], twin["n_only_twin"]) == (back["n_only_twin"], back["n_only_own"])
    effects = slc.causal.latent_effects(crosscoder, pair, said, [0, 1])
    for latent in (0, 1):
        assert found[latent].effect["kl_change_added"] == pytest.approx(effects.kl_change_added[latent], abs=1e-6)
    assert found[5].effect is None
    assert [len(values) for values in found.random_effects.values()] == [3, 3]
    assert found.concepts.loc["refusal", "latent"] == 2
    (mark,) = found[2].concepts
    assert mark == {"concept": "refusal", **found.concepts.loc["refusal", ["share", "auroc"]].to_dict()}
    assert sum(len(found[latent].concepts) for latent in range(12)) == 1


def assert_same(found, expected):
    """But for what takes the models."""
    for name in ("table", "twins"):
        pd.testing.assert_frame_equal(getattr(found, name), getattr(expected, name), rtol=1e-6)
    pd.testing.assert_frame_equal(found.statistics.table, expected.statistics.table, rtol=1e-6)
    assert found.profiles.first_positions == expected.profiles.first_positions
    assert torch.equal(found.profiles.histogram, expected.profiles.histogram)
    torch.testing.assert_close(found.profiles.by_position, expected.profiles.by_position)
    for latent in range(12):
        for these, those in zip((found[latent].top, *found[latent].quantiles), bands(expected, latent), strict=True):
            assert [(each.texts, each.example.position) for each in these] == [
                (each.texts, each.example.position) for each in those
            ]
            for a, b in zip(these, those, strict=True):
                torch.testing.assert_close(a.example.scores, b.example.scores, equal_nan=True)


def bands(found, latent):
    return (found[latent].top, *found[latent].quantiles)


def test_padding_is_seen_nowhere_whatever_it_is(looked_at):
    pair, crosscoder, *_ = looked_at
    n_read = 50
    whole = slc.explore(crosscoder, slc.EvalData(pair=pair, tokens=TOKENS[:, :n_read]))
    padded = torch.cat([TOKENS[:, :n_read], TOKENS.flip(0)[:, n_read:]], dim=1)
    found = slc.explore(
        crosscoder, slc.EvalData(pair=pair, tokens=padded, token_mask=(torch.arange(64) < n_read).expand_as(padded))
    )
    assert_same(found, whole)
    for latent in range(12):
        for a, b in zip(bands(found, latent), bands(whole, latent), strict=True):
            assert [each.kl for each in a] == [pytest.approx(each.kl, abs=1e-4) for each in b]


def test_a_cache_shows_what_takes_no_models(looked_at, tmp_path):
    pair, crosscoder, *_ = looked_at
    keep = ~torch.isin(TOKENS, torch.tensor([tiny_tokenizer().bos_token_id, int(TOKENS[0, 5])]))
    cache = slc.cache_activations(tmp_path, pair, TOKENS, TINY_HOOK, token_mask=keep, dtype="float32")
    data = slc.EvalData(pair=pair, tokens=TOKENS, token_mask=keep)
    diagnosis = slc.diagnose(crosscoder, data)
    found = slc.explore(crosscoder, slc.EvalData(activations=cache, tokenizer=pair.tokenizer), diagnosis)
    whole = slc.explore(crosscoder, data, diagnosis, examples=found.examples)
    assert_same(found, whole)
    assert (found.kl, found.lenses, found.concepts) == (None, {}, None)
    assert whole.lenses
    slc.write_explorer({"cache": found}, tmp_path / "explorer.html")
    scores = [each.example.scores for band in bands(found, 3) for each in band]
    assert torch.cat(scores).isnan().any()  # shown, and left out
    without = slc.explore(crosscoder, slc.EvalData(activations=cache), diagnosis)
    assert without.statistics is None
    assert without[3].top[0].texts[0].strip().isdigit()


@pytest.mark.parametrize("most_bytes", [1 << 30, 0])
def test_the_models_run_once_for_all_parts_but_the_kl_if_activations_fit_in_memory(looked_at, monkeypatch, most_bytes):
    pair, crosscoder, _, _, found = looked_at
    n_read, activations = [], HookedModelPair.activations

    def counted(self, tokens, *args, **kwargs):
        n_read.append(len(tokens))
        return activations(self, tokens, *args, **kwargs)

    monkeypatch.setattr(HookedModelPair, "activations", counted)
    monkeypatch.setattr(import_module("sae_lens_crosscoder.workflows.explore"), "_MOST_KEPT_BYTES", most_bytes)
    again = slc.explore(crosscoder, slc.EvalData(pair=pair, tokens=TOKENS), examples=found.examples)
    assert (sum(n_read) == len(TOKENS)) == bool(most_bytes)
    pd.testing.assert_frame_equal(again.statistics.table, found.statistics.table)


def test_examples_of_other_tokens_and_questions_to_no_models_are_refused(looked_at):
    pair, crosscoder, said, diagnosis, found = looked_at
    for data in (dict(tokens=TOKENS.flip(0)), dict(tokens=TOKENS, token_mask=TOKENS != 5)):
        with pytest.raises(ValueError, match="collected from other tokens, or with another token mask"):
            slc.explore(crosscoder, slc.EvalData(pair=pair, **data), diagnosis, examples=found.examples)
    with pytest.raises(ValueError, match="contrasts and responses need the models"):
        slc.explore(crosscoder, slc.EvalData(activations=torch.zeros(3, 192)), responses=said)


def test_tokens_read_as_they_do_after_another_one():
    texts = TokenTexts(tiny_tokenizer())
    assert [texts(i) for i in tiny_tokenizer()("paris is in")["input_ids"]] == [" <bos>", " paris", " is", " in"]
    assert TokenTexts(None)(17) == " 17"


def test_a_table_that_is_given_is_not_made_again(looked_at):
    *_, diagnosis, found = looked_at
    pd.testing.assert_frame_equal(found.table[list(diagnosis.latents)], diagnosis.latents)
    assert found.manifest == diagnosis.manifest
