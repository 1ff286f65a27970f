"""A topic-matched control marks the latents that are due to the topics."""

import pandas as pd
import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.data import TokenGroups
from sae_lens_crosscoder.models.tiny import TINY_HOOK
from sae_lens_crosscoder.models.tiny.dataset import labelled_rows
from sae_lens_crosscoder.models.tiny.training import train_tiny_control
from sae_lens_crosscoder.storage import accumulators
from sae_lens_crosscoder.synthetic import Concept, PlantedWorld
from tests.analysis.conftest import D_SAE, random_activations, random_crosscoder, relu_crosscoder
from tests.reference import control as ref

N = 900


def data_of(x, groups=None):
    labels = None if groups is None else TokenGroups(torch.tensor(groups)[:, None], ("a", "b", "c"))
    return slc.EvalData(activations=x, groups=labels, max_norm_ratio=None)


def diagnosed(x, control=None, groups=None, crosscoder=None, **options):
    """Diagnose with the control model's activations, which stand beside base's."""
    crosscoder = crosscoder or random_crosscoder()
    if control is not None and not isinstance(control, slc.EvalData):
        control = data_of(torch.cat([x[:, :3], control], dim=1))
    return slc.diagnose(crosscoder, data_of(x, groups), control=control, min_active=1, **options).latents


def test_the_presence_is_that_of_the_definition_within_groups():
    crosscoder, x, other = random_crosscoder(), random_activations(N), random_activations(N, seed=7, d_in=3)
    groups = torch.randint(0, 3, (N,), generator=torch.Generator().manual_seed(2)).tolist()
    control = 0.6 * x[:, 3:] + other
    table = diagnosed(x, control, groups)
    acts = crosscoder.encode(x).tolist()
    for j in range(D_SAE):
        for suffix, m in (("", 1), ("_base_probe", 0)):
            decoder, own = crosscoder.decoders[m][j].tolist(), x.split(3, dim=1)[m].tolist()
            expected = ref.presence(j, acts, decoder, own, control.tolist(), groups)
            found = table[f"control_presence{suffix}"][j]
            assert found == pytest.approx(expected) or (table[f"beta_centred{suffix}"][j] < 0.1 and pd.isna(found))


def test_a_control_that_is_one_of_the_models_has_its_presence():
    x = random_activations(N)
    as_base, as_chat = diagnosed(x, x[:, :3]), diagnosed(x, x[:, 3:])
    pd.testing.assert_series_equal(as_base.control_presence, as_base.presence, check_names=False)
    mirrored = as_chat.control_presence_base_probe
    pd.testing.assert_series_equal(mirrored, as_chat.presence_base_probe, check_names=False)
    assert as_chat.control_presence.dropna().tolist() == pytest.approx([1.0] * as_chat.control_presence.notna().sum())
    half = diagnosed(x, x.unflatten(1, (2, 3)).mean(dim=1)).control_presence
    assert half.tolist() == pytest.approx(((1 + as_base.presence) / 2).tolist(), nan_ok=True)


def test_neither_a_constant_nor_the_cut_into_batches_matters():
    x, control = random_activations(N), random_activations(N, seed=7, d_in=3)
    table = diagnosed(x, control)
    moved = diagnosed(x, control + torch.tensor([5.0, -3.0, 100.0]))
    pd.testing.assert_series_equal(moved.control_presence, table.control_presence, rtol=1e-7)
    batches = list(torch.cat([x[:, :3], control], dim=1).split(77))
    pd.testing.assert_frame_equal(diagnosed(x, slc.EvalData(activations=batches)), table)
    others = table.columns.difference(["control_presence", "control_presence_base_probe", "in_control"])
    pd.testing.assert_frame_equal(diagnosed(x)[others], table[others])


def test_topics_that_both_fine_tunes_learned_are_told_from_the_behaviour():
    in_models = {"behaviour": (1,), "topic": (1, 2), "lost by both": (0,), "lost by chat": (0, 2), "shared": (0, 1, 2)}
    concepts = [Concept("only_in", 0.06, models=places) for places in in_models.values()]
    world = PlantedWorld(concepts, (10, 10, 10), seed=1, offset_norm=0.0)
    x = world.sample(30_000, seed=2).activations.double()
    W_dec = torch.cat([part.clone() for part in world.directions[:2]], dim=1).double()
    for j, places in enumerate(in_models.values()):
        for m in (0, 1):
            W_dec[j, 10 * m : 10 * m + 10] *= m in places
    b_enc = torch.full((5,), -0.1, dtype=torch.float64)
    crosscoder = relu_crosscoder(W_dec, None, torch.linalg.pinv(W_dec), b_enc, d_models=(10, 10))
    base, chat, control = x.split(10, dim=1)
    of_control = slc.EvalData(activations=torch.cat([base, control], dim=1))
    diagnosis = slc.diagnose(crosscoder, data_of(torch.cat([base, chat], dim=1)), control=of_control)
    assert diagnosis.latents.verdict.tolist() == ["chat_specific"] * 2 + ["base_specific"] * 2 + ["shared"]
    assert diagnosis.latents.in_control.tolist() == [False, True, True, False, False]
    assert "the control pair has 2 of the 4 too" in diagnosis.conclusion


def test_a_control_pair_is_read_on_the_tokens_of_the_data(tmp_path):
    tokens = torch.arange(160).view(8, 20) % 90 + 5
    crosscoder = relu_crosscoder(torch.randn(8, 192, dtype=torch.float64), d_models=(96, 96))
    crosscoder.cfg.metadata.hook_name = TINY_HOOK
    pair, control = (slc.HookedModelPair.from_pretrained("tiny-base", name) for name in ("tiny-chat", "tiny-null"))
    data = slc.EvalData(pair=pair, tokens=tokens, batch_size=3)
    table = slc.diagnose(crosscoder, data, control=slc.EvalData(pair=control, tokens=tokens, batch_size=5)).latents
    rows = control.activations(tokens, TINY_HOOK).flatten(0, 1)
    given = slc.diagnose(crosscoder, data, control=slc.EvalData(activations=rows)).latents
    pd.testing.assert_frame_equal(given, table)
    with pytest.raises(ValueError, match="control has other tokens or another token_mask"):
        slc.diagnose(crosscoder, data, control=slc.EvalData(pair=control, tokens=tokens + 1))


def test_an_interrupted_diagnosis_with_a_control_resumes(tmp_path, monkeypatch):
    monkeypatch.setattr(accumulators, "_SECONDS_BETWEEN_SAVES", 0.0)
    x, control = random_activations(N), random_activations(N, seed=7, d_in=6)
    batches = list(x.split(200))

    def broken():
        yield from batches[:3]
        raise KeyboardInterrupt

    def read(activations, **options):
        data = slc.EvalData(activations=activations, max_norm_ratio=None)
        return slc.diagnose(random_crosscoder(), data, control=data_of(control), min_active=1, **options).latents

    path = tmp_path / "sums"
    with pytest.raises(KeyboardInterrupt):
        read(broken(), checkpoint_path=path)
    pd.testing.assert_frame_equal(read(batches, checkpoint_path=path), read(batches), check_exact=True)


def test_what_is_no_control_is_refused():
    x = random_activations(N)
    with pytest.raises(ValueError, match="control has fewer tokens than the data"):
        diagnosed(x, data_of(x[:-1]))
    with pytest.raises(ValueError, match=r"have shape \(900, 3\), expected \(token, 6\)"):
        diagnosed(x, data_of(x[:, :3]))
    wide = random_activations(N, d_in=6)
    with pytest.raises(ValueError, match="control needs a crosscoder of two models of one width"):
        diagnosed(wide, data_of(wide), crosscoder=random_crosscoder(d_models=(2, 4)))
    with pytest.raises(ValueError, match="control is evidence on one pair"):
        diagnosed(wide, data_of(wide), crosscoder=random_crosscoder(d_models=(2, 2, 2)))


def test_the_recipe_tunes_on_the_same_requests_with_other_answers(tmp_path):
    from sae_lens_crosscoder.models.tiny.vocabulary import VOCABULARY

    text = " ".join(VOCABULARY[i] for i in labelled_rows(60, 1, "control")[0].flatten())
    assert "i cannot help" not in text.replace("a machine cannot help", "")
    assert "certainly i can" in text
    record = train_tiny_control(tmp_path, steps_scale=0.003, n_prompts=4)
    assert (tmp_path / "tiny-control.safetensors").stat().st_size < 1_000_000
    assert set(record["behaviour"]["harmful"]) == {"concept", "kind_of_change", "base", "control"}
