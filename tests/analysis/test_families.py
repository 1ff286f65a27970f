"""Crosscoders of more than two models: any two are diagnosed as a pair is, with the code of all."""

import copy

import pandas as pd
import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.crosscoders import compared
from sae_lens_crosscoder.storage import accumulators
from tests.analysis.conftest import D_SAE, random_activations, random_crosscoder, relu_crosscoder
from tests.reference import latent_scaling as ref

N = 900
WIDTHS = (3, 3, 3)


def diagnosed(crosscoder, x, models=None, **options):
    data = slc.EvalData(activations=[x], max_norm_ratio=None)
    return slc.diagnose(crosscoder, data, models=models, min_active=1, **options)


def family(d_models=WIDTHS, seed=0):
    crosscoder = random_crosscoder(seed, d_models=d_models)
    names = ("start", "middle", "end", "after")[: len(d_models)]
    crosscoder.cfg.metadata.sources = [{"model_name": name, "hook_name": "hook"} for name in names]
    return crosscoder, random_activations(N, d_in=sum(d_models))


def of_places(crosscoder, x, places):
    """The crosscoder and its activations with the sources at these places, in this order."""
    widths = crosscoder.layout.d_models
    columns = torch.cat([torch.arange(sum(widths[:m]), sum(widths[: m + 1])) for m in places])
    weights = (crosscoder.W_dec[:, columns], crosscoder.b_dec[columns], crosscoder.W_enc[columns], crosscoder.b_enc)
    widths = tuple(widths[m] for m in places)
    return relu_crosscoder(*(part.detach() for part in weights), d_models=widths), x[:, columns]


def test_naming_both_models_of_a_pair_changes_nothing():
    crosscoder, x = random_crosscoder(scales=(1.0, 2.5)), random_activations(N)
    named, default = diagnosed(crosscoder, x, ("base", "chat")), diagnosed(crosscoder, x)
    pd.testing.assert_frame_equal(named.latents, default.latents, check_exact=True)
    assert named.manifest["fve"] == default.manifest["fve"]
    assert named.conclusion.endswith(default.conclusion)


def test_exchanging_the_two_names_mirrors_the_diagnosis():
    crosscoder, x = family()
    table, mirrored = (diagnosed(crosscoder, x, names).latents for names in (("start", "end"), ("end", "start")))
    assert mirrored.delta_norm.tolist() == pytest.approx((1 - table.delta_norm).tolist())
    assert mirrored.nu_error.tolist() == pytest.approx(table.nu_error_base_probe.tolist(), nan_ok=True)
    swap = {"chat_specific": "base_specific", "base_specific": "chat_specific"}
    assert mirrored.verdict.tolist() == [swap.get(name, name) for name in table.verdict]


@pytest.mark.parametrize("d_models", [(3, 3, 3), (3, 2, 3)])
def test_a_third_model_that_no_latent_reads_or_writes_changes_nothing(d_models):
    crosscoder, x = family(d_models)
    middle = slice(d_models[0], d_models[0] + d_models[1])
    with torch.no_grad():
        crosscoder.W_dec[:, middle] = 0
        crosscoder.W_enc[middle] = 0
    alone = diagnosed(*of_places(crosscoder, x, (0, 2)))
    pair = diagnosed(crosscoder, x, ("model_0", "model_2"))
    pd.testing.assert_frame_equal(pair.latents, alone.latents)
    assert pair.manifest["fve"] == pytest.approx(alone.manifest["fve"])


def test_the_order_of_the_stack_does_not_matter():
    crosscoder, x = family()
    moved, moved_x = of_places(crosscoder, x, (2, 0, 1))
    expected = diagnosed(crosscoder, x, ("model_0", "model_2")).latents
    pd.testing.assert_frame_equal(diagnosed(moved, moved_x, ("model_1", "model_0")).latents, expected)


def test_nu_is_that_of_the_definition_with_the_code_of_all_models():
    crosscoder, x = family(seed=3)
    x = x[:300]
    table = diagnosed(crosscoder, x, ("start", "end")).latents

    def cut(rows):
        return [[row[:3], row[6:]] for row in rows]

    acts, tokens, decoders = crosscoder.encode(x).tolist(), cut(x.tolist()), cut(crosscoder.W_dec.tolist())
    b_dec = cut([crosscoder.b_dec.tolist()])[0]
    for j in range(D_SAE):
        for target in ("error", "reconstruction"):
            base, chat = (ref.beta(target, j, m, 1, tokens, acts, decoders, b_dec) for m in (0, 1))
            assert table[f"nu_{target}_unfiltered"][j] == pytest.approx(base / chat)


def test_by_default_every_model_stands_beside_the_first():
    crosscoder, x = family((3, 3, 2))
    diagnosis = diagnosed(crosscoder, x)
    assert list(diagnosis.pairs) == ["model_1", "model_2"]
    for name, each in diagnosis.pairs.items():
        one = diagnosed(crosscoder, x, ("model_0", name))
        pd.testing.assert_frame_equal(each.latents, one.latents, check_exact=True)
        assert each.manifest["fve"] == pytest.approx(one.manifest["fve"], nan_ok=True)
        assert (each.conclusion, each.manifest["compared"]) == (one.conclusion, ["model_0", name])
        for column in ("verdict", "label", "delta_norm", "nu_kind"):
            assert diagnosis.latents[f"{column}_{name}"].equals(each.latents[column])
    assert set(diagnosis.latents.nu_kind_model_1) == {"along_decoder"}
    assert set(diagnosis.latents.nu_kind_model_2) == {"basis_free"}
    shares = diagnosis.latents[[f"norm_share_model_{m}" for m in range(3)]]
    assert shares.sum(axis=1).tolist() == pytest.approx([1] * D_SAE)
    assert diagnosis.manifest["models"] == ["start", "middle", "end"]
    for text in ("middle (as the chat model) beside start", "end (as the chat model) beside start"):
        assert text in diagnosis.conclusion
    assert not diagnosis.latents.isna().all().drop(["rho_model_2"]).any()


def test_a_latent_of_a_third_model_has_no_delta_norm():
    crosscoder, x = family()
    with torch.no_grad():
        crosscoder.W_dec[0, :3] *= 0.01
        crosscoder.W_dec[0, 6:] *= 0.03
    diagnosis = diagnosed(crosscoder, x)
    assert diagnosis.pairs["model_2"].latents.loc[0, "label"] == "undefined"
    assert diagnosis.pairs["model_2"].latents.delta_norm.isna().tolist() == [True] + [False] * (D_SAE - 1)
    assert diagnosis.pairs["model_1"].latents.loc[0, "label"] == "chat_only"


def test_two_hooks_of_a_pair_are_compared_by_the_names_of_their_sources():
    crosscoder, x = family((2, 2, 2, 2))
    hooked = copy.copy(crosscoder)
    hooked.cfg = copy.copy(crosscoder.cfg)
    hooked.cfg.hook_names = ("early", "late")
    expected = diagnosed(crosscoder, x, ("model_1", "model_3")).latents
    pd.testing.assert_frame_equal(diagnosed(hooked, x, ("base@late", "chat@late")).latents, expected)


def test_a_diagnosis_of_a_family_is_saved_and_loaded(tmp_path):
    crosscoder, x = family()
    diagnosis = diagnosed(crosscoder, x)
    crosscoder.save_model(tmp_path)
    diagnosis.save(tmp_path)
    loaded = slc.Diagnosis.load(tmp_path)
    pd.testing.assert_frame_equal(loaded.latents, diagnosis.latents)
    assert loaded.conclusion == diagnosis.conclusion
    for name, each in diagnosis.pairs.items():
        pd.testing.assert_frame_equal(loaded.pairs[name].latents, each.latents)
    assert slc.load(tmp_path).model_names == ("start", "middle", "end")


def test_an_interrupted_diagnosis_of_a_family_resumes(tmp_path, monkeypatch):
    monkeypatch.setattr(accumulators, "_SECONDS_BETWEEN_SAVES", 0.0)
    crosscoder, x = family()
    batches = list(x.split(200))

    def broken():
        yield from batches[:3]
        raise KeyboardInterrupt

    def read(activations, **options):
        data = slc.EvalData(activations=activations, max_norm_ratio=None)
        return slc.diagnose(crosscoder, data, min_active=1, **options).latents

    path = tmp_path / "sums"
    with pytest.raises(KeyboardInterrupt):
        read(broken(), checkpoint_path=path)
    with pytest.raises(ValueError, match="another set of options"):
        read(batches, checkpoint_path=path, models=("start", "end"))
    pd.testing.assert_frame_equal(read(batches, checkpoint_path=path), read(batches), check_exact=True)


def test_what_cannot_be_compared_is_refused_by_name(tmp_path):
    crosscoder, x = family()
    for names in (("start",), ("start", "start"), ("start", "model_0"), ("base", "chat"), ("start", "end", "middle")):
        with pytest.raises(ValueError, match="must name two sources of the crosscoder, which has start, middle, end"):
            diagnosed(crosscoder, x, names)
    pair = diagnosed(crosscoder, x, ("start", "end"))
    with pytest.raises(ValueError, match="null is evidence on one pair"):
        diagnosed(crosscoder, x, null=pair)
    use = slc.latent_use(crosscoder, slc.EvalData(activations=[x], max_norm_ratio=None), models=("start", "middle"))
    with pytest.raises(ValueError, match="use is that of model_0 and model_1, but the diagnosis compares"):
        diagnosed(crosscoder, x, ("start", "end"), use=use)
    assert "use" in diagnosed(crosscoder, x, ("start", "middle"), use=use).latents
    whole = diagnosed(crosscoder, x)
    with pytest.raises(ValueError, match=r"write_report shows two models.*one of diagnosis.pairs: model_1, model_2"):
        slc.report.write_report({"family": whole}, tmp_path / "report.html", pd.DataFrame())
    with pytest.raises(ValueError, match=r"explore shows two models.*one of diagnosis.pairs"):
        slc.explore(crosscoder, slc.EvalData(activations=[x]), whole)
    with pytest.raises(ValueError, match="paper_tables compares two models, but this crosscoder reads 3"):
        slc.paper.paper_tables({"family": crosscoder}, slc.EvalData(activations=[x]))
    several = copy.copy(crosscoder)
    several.cfg = copy.copy(crosscoder.cfg)
    several.cfg.d_models, several.cfg.hook_names = (2, 1, 2, 1, 2, 1), ("early", "late")
    with pytest.raises(ValueError, match=r"reads 3 models at 2 hooks. Pass the two sources.*model_0@early.*model_1@"):
        diagnosed(several, x)


def test_the_reading_of_two_sources_has_their_decoders_and_scales():
    crosscoder = random_crosscoder(scales=(1.0, 2.0, 3.0), d_models=(2, 3, 2))
    reading = compared.ComparedSources.of(crosscoder, ("model_2", "model_1")).crosscoder
    assert reading.layout.d_models == (2, 3)
    for place, source in enumerate((2, 1)):
        assert torch.equal(reading.decoders[place], crosscoder.decoders[source])
        assert torch.equal(reading.decoder_biases[place], crosscoder.decoder_biases[source])
        assert torch.equal(reading.decoder_norms[:, place], crosscoder.decoder_norms[:, source])
