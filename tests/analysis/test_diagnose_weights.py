"""What weights alone tell is told without models: in every layout, over every kind of sources, as loops compute it."""

import math

import pytest
import torch
from sae_lens import StandardSAE, StandardSAEConfig

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.analysis import WeightDiagnosis, diagnose_weights
from sae_lens_crosscoder.analysis.diagnosis.classes import label
from sae_lens_crosscoder.stacking import join_hooks
from tests.causal.conftest import random_crosscoder
from tests.loading.foreign_files import LAYOUTS
from tests.reference import weights as ref

HOOKS = ("blocks.1.hook_resid_post", "blocks.3.hook_resid_post")
assumed = pytest.mark.filterwarnings("ignore:.*was loaded as .*, with assumed settings:UserWarning")


def over_hooks(n_models, hooks=HOOKS, seed=0, d_sae=12):
    """A random crosscoder of models at two hooks, with latents that live at one hook only."""
    one = random_crosscoder((3,) * len(hooks) * n_models, seed=seed, d_sae=d_sae)
    cfg = slc.JumpReLUCrosscoderConfig(d_models=one.cfg.d_models, hook_names=hooks, d_sae=d_sae, dtype="float64")
    crosscoder = slc.JumpReLUCrosscoder(cfg)
    crosscoder.load_state_dict(one.state_dict())
    with torch.no_grad():
        late = [slice(3 * place, 3 * place + 3) for place in range(1, len(hooks) * n_models, len(hooks))]
        for part in late:
            crosscoder.W_dec[:4, part] *= 0.01
        crosscoder.W_dec[5, late[-1]] = 0
    crosscoder.cfg.metadata.hook_name = join_hooks(hooks)
    return crosscoder


def rows_of(crosscoder):
    widths = crosscoder.layout.d_models
    return [ref.parts(row, widths) for row in crosscoder.W_dec.tolist()]


@assumed
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_published_layout_is_told_without_models_as_its_own_code_has_it(tmp_path, name, monkeypatch):
    monkeypatch.setattr(slc.HookedModelPair, "from_pretrained", lambda *args, **kwargs: pytest.fail("loaded a model"))
    layout = LAYOUTS[name]
    crosscoder = slc.load(layout.write(tmp_path), dtype="float64", **layout.options)
    found = diagnose_weights(crosscoder)
    assert len(found.latents) == crosscoder.cfg.d_sae
    assert list(found.sources.index) == list(crosscoder.layout.names)
    assert found.manifest["layout"] == layout.format
    assert found.manifest.get("assumptions", []) == crosscoder.cfg.metadata.assumptions
    if layout.is_pair:
        expected = layout.expected()[2]
        assert found.latents.delta_norm.to_numpy() == pytest.approx(expected.numpy(), abs=1e-6, nan_ok=True)
        assert list(found.latents.label) == [label(delta) for delta in expected.tolist()]
        assert found.classes.chat.sum() == len(found.latents)
    has_threshold = crosscoder.cfg.architecture() == "jumprelu_crosscoder"
    assert (found.latents.threshold > 0).any() == (has_threshold and "zero" not in name)
    again = WeightDiagnosis.load(found.save(tmp_path / "out"))
    for table in ("latents", "sources", "pairs"):
        assert getattr(again, table).equals(getattr(found, table)), table
        assert getattr(again, table).index.name == getattr(found, table).index.name
    assert (again.manifest, str(again)) == (found.manifest, str(found))


def test_cosines_norms_and_biases_of_a_pair_are_those_of_loops():
    crosscoder = random_crosscoder((4, 4), d_sae=15)
    with torch.no_grad():
        crosscoder.W_dec[3] = 0  # writes nothing
        crosscoder.W_dec[4, 4:] = 0
    found, rows = diagnose_weights(crosscoder), rows_of(crosscoder)
    encoders = [ref.parts(row, (4, 4)) for row in crosscoder.W_enc.T.tolist()]
    for j, (base, chat) in enumerate(rows):
        row = found.latents.loc[j]
        norms = [ref.norm(base), ref.norm(chat)]
        assert [row.dec_norm_base, row.dec_norm_chat] == pytest.approx(norms)
        assert row.delta_norm == pytest.approx(ref.delta_norm(norms, 0, 1), nan_ok=True)
        assert row.cos_sim == pytest.approx(ref.cosine(base, chat), nan_ok=True)
        assert row.enc_cos_sim == pytest.approx(ref.cosine(*encoders[j]))
        assert row.enc_norm_ratio == pytest.approx(ref.norm(encoders[j][1]) / ref.norm(encoders[j][0]))
        assert (row.threshold, row.b_enc) == pytest.approx((0.5, crosscoder.b_enc[j].item()))
        assert row.dead == (j == 3)
    base, chat = ref.parts(crosscoder.b_dec.tolist(), (4, 4))
    assert found.sources.b_dec_norm.tolist() == pytest.approx([ref.norm(base), ref.norm(chat)])
    assert found.sources.b_dec_cos["chat"] == pytest.approx(ref.cosine(base, chat))
    assert math.isnan(found.sources.b_dec_cos["base"])
    assert found.sources.n_largest.tolist() == [
        sum(first > second for first, second in found.latents[["dec_norm_base", "dec_norm_chat"]].to_numpy()),
        sum(first < second for first, second in found.latents[["dec_norm_base", "dec_norm_chat"]].to_numpy()),
    ]
    alone = slc.analysis.decoupled_pairs(crosscoder, found.latents, 0.5)
    assert diagnose_weights(crosscoder, min_cosine=0.5).pairs.equals(alone)


@pytest.mark.parametrize("n_models", [2, 3])
def test_models_are_compared_at_every_hook(n_models):
    crosscoder = over_hooks(n_models)
    found = diagnose_weights(crosscoder)
    names, rows = crosscoder.layout.names, rows_of(crosscoder)
    compared = {names[2 * m + h]: (h, 2 * m + h) for m in range(1, n_models) for h in (0, 1)}
    assert set(found.manifest["compared"]) == set(compared)
    for name, (first, second) in compared.items():
        for j, parts in enumerate(rows):
            norms = [ref.norm(part) for part in parts]
            expected = ref.delta_norm(norms, first, second)
            assert found.latents[f"delta_norm_{name}"][j] == pytest.approx(expected, nan_ok=True)
            assert found.latents[f"label_{name}"][j] == label(expected)
            assert found.latents[f"cos_sim_{name}"][j] == pytest.approx(
                ref.cosine(parts[first], parts[second]), nan_ok=True
            )
        assert found.classes[name].sum() == len(rows)
    absent = found.latents[f"delta_norm_{names[3]}"][:4]
    assert absent.isna().any()  # latents of the early hook have no Delta_norm at the late one
    assert found.pairs.empty


def test_of_one_model_every_hook_is_compared_with_the_one_before():
    hooks = (*HOOKS, "blocks.4.hook_resid_post")
    crosscoder = over_hooks(1, hooks)
    found = diagnose_weights(crosscoder)
    assert found.manifest["compared"] == []
    assert found.classes.empty
    assert "delta_norm" not in found.latents
    for j, parts in enumerate(rows_of(crosscoder)):
        for before, place in ((0, 1), (1, 2)):
            expected = ref.cosine(parts[before], parts[place])
            assert found.latents[f"cos_sim_{hooks[place]}"][j] == pytest.approx(expected, nan_ok=True)
    assert list(found.latents.hook_read) == [hooks[hook] for hook in crosscoder.hooks_read.tolist()]


def test_diagnose_tells_delta_norm_hook_by_hook_as_the_comparison_of_two_sources_does():
    crosscoder = over_hooks(2)
    data = slc.EvalData(activations=torch.randn(300, crosscoder.cfg.d_in, dtype=torch.float64))
    table = slc.diagnose(crosscoder, data).latents
    assert table.delta_norm.isna().all()  # of all sources together there is none
    for hook in HOOKS:
        pair = slc.diagnose(crosscoder, data, models=(f"base@{hook}", f"chat@{hook}")).latents
        assert table[f"delta_norm_chat@{hook}"].to_numpy() == pytest.approx(pair.delta_norm.to_numpy(), nan_ok=True)
        assert list(table[f"label_chat@{hook}"]) == list(pair.label)
    assert table[f"delta_norm_chat@{HOOKS[0]}"].notna().any()


def test_what_is_missing_is_told_with_what_is_known(tmp_path):
    crosscoder = random_crosscoder((4, 4))
    needs = " ".join(diagnose_weights(crosscoder).needs.needs)
    assert "--model_name and --chat_model_name" in needs
    assert f"at {crosscoder.cfg.metadata.hook_name}," in needs
    crosscoder.cfg.metadata.model_name, crosscoder.cfg.metadata.assumptions = "a/base", ["hook_name='x'"]
    needs = " ".join(diagnose_weights(crosscoder).needs.needs)
    assert "the models a/base and --chat_model_name," in needs
    assert f"at {crosscoder.cfg.metadata.hook_name} (assumed)" in needs
    with pytest.raises(ValueError, match=r"has no weights_latents\.parquet"):
        WeightDiagnosis.load(tmp_path)


@pytest.mark.usefixtures("unchecked_types")
def test_what_is_no_crosscoder_is_refused():
    with pytest.raises(ValueError, match="An SAE of one model"):
        diagnose_weights(StandardSAE(StandardSAEConfig(d_in=4, d_sae=5)))
    with pytest.raises(ValueError, match=r"min_cosine=1\.5 must lie"):
        diagnose_weights(random_crosscoder((4, 4)), min_cosine=1.5)
