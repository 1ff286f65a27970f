"""The latent table, on crosscoders whose faults are built in."""

import importlib
import math
from inspect import unwrap

import pandas as pd
import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.activations.harvest import harvest, validate_activations
from sae_lens_crosscoder.analysis import inputs as data_source
from sae_lens_crosscoder.models.tiny import TINY_HOOK
from tests.analysis.conftest import random_activations, random_crosscoder, relu_crosscoder, scaling_of
from tests.crosscoders.conftest import batchtopk_crosscoder
from tests.reference.variance import variance_explained, variance_explained_of_difference

NAN = float("nan")

diagnose_module = importlib.import_module("sae_lens_crosscoder.analysis.diagnosis.diagnose")


def faulty_world(n=40_000):
    """Eight latents on orthogonal directions, and the activations of models that differ from what some of them say.

    0 chat-only for real; 1 weak in the base (0.6 of chat) with its base half shrunk away; 2 and 3 split a shared
    concept between them; 4 shared; 5 never fires; 6 fires on a handful of tokens; 7 base-only for real.
    """
    generator = torch.Generator().manual_seed(0)
    u = torch.eye(8, dtype=torch.float64)
    a = (torch.rand(n, 8, generator=generator) < 0.1) * (
        1 + 0.25 * torch.randn(n, 8, generator=generator, dtype=torch.float64)
    ).clamp(min=0.1)
    a[:, 3], a[:, 5] = 0, 0
    a[60:, 6] = 0
    base = a.clone()
    base[:, 0], base[:, 1] = 0, 0.6 * a[:, 1]
    chat = a.clone()
    chat[:, 7] = 0
    x = torch.cat([base, chat], dim=-1) + 0.01 * torch.randn(n, 16, generator=generator, dtype=torch.float64)
    zero = torch.zeros(8, dtype=torch.float64)
    rows = [
        torch.cat([zero, u[0]]),
        torch.cat([zero, u[1]]),
        torch.cat([zero, u[2]]),
        torch.cat([u[2], zero]),
        torch.cat([u[4], u[4]]),
        torch.cat([u[5], u[5]]),
        torch.cat([zero, u[6]]),
        torch.cat([u[7], zero]),
    ]
    W_dec = torch.stack(rows)
    crosscoder = relu_crosscoder(W_dec, W_enc=W_dec.T / (W_dec.T.norm(dim=0) ** 2), b_enc=None, d_models=(8, 8))
    with torch.no_grad():
        crosscoder.b_enc.fill_(-0.05)
        crosscoder.b_enc[5] = -1e6
    return crosscoder, x


def test_every_fault_gets_its_verdict():
    crosscoder, x = faulty_world()
    table = slc.diagnose(crosscoder, slc.EvalData(activations=x.split(4096), max_norm_ratio=None)).latents
    assert table.verdict.tolist() == [
        "chat_specific",
        "complete_shrinkage",
        "latent_decoupling",
        "latent_decoupling",
        "shared",
        "dead",
        "rare",
        "base_specific",
    ]
    assert table.nu_error[1] == pytest.approx(0.6, abs=0.05)
    assert table.nu_error[0] == pytest.approx(0, abs=0.05)
    assert table.nu_reconstruction[2] == pytest.approx(1, abs=0.05)
    assert table.nu_error_base_probe[7] == pytest.approx(0, abs=0.05)
    assert table.label.tolist()[:5] == ["chat_only", "chat_only", "chat_only", "base_only", "shared"]


def test_swapping_the_models_mirrors_the_table():
    crosscoder, x = faulty_world()
    swap = [*range(8, 16), *range(8)]
    mirrored = relu_crosscoder(
        crosscoder.W_dec[:, swap], crosscoder.b_dec[swap], crosscoder.W_enc[swap], crosscoder.b_enc, d_models=(8, 8)
    )
    table = slc.diagnose(crosscoder, slc.EvalData(activations=[x], max_norm_ratio=None)).latents
    other = slc.diagnose(mirrored, slc.EvalData(activations=[x[:, swap]], max_norm_ratio=None)).latents
    pd.testing.assert_series_equal(other.delta_norm, 1 - table.delta_norm)
    mirror = {"chat_specific": "base_specific", "base_specific": "chat_specific"}
    assert other.verdict.tolist() == [mirror.get(name, name) for name in table.verdict]
    pd.testing.assert_series_equal(other.nu_error, table.nu_error_base_probe, check_names=False)


@pytest.mark.parametrize("unit", [1.0, 1e-3, 1e3])
def test_a_latent_that_writes_next_to_nothing_is_negligible_in_any_units(unit):
    crosscoder, x = faulty_world()
    with torch.no_grad():
        for name, factor in (("W_dec", unit), ("W_enc", 1 / unit), ("b_enc", 1 / unit)):
            crosscoder.get_parameter(name).mul_(factor)
        crosscoder.W_dec[2] *= 5e-4
    table = slc.diagnose(crosscoder, slc.EvalData(activations=x.split(4096), max_norm_ratio=None)).latents
    assert table.verdict[2] == "negligible"
    assert (table.verdict == "negligible").sum() == 1


def test_nu_beside_a_verdict_is_that_of_the_probe_that_judged():
    crosscoder, x = faulty_world()
    table = slc.diagnose(crosscoder, slc.EvalData(activations=[x], max_norm_ratio=None)).latents
    own = slc.analysis.with_own_probe(table)
    base_only = table.label == "base_only"
    assert base_only.any()
    for name in ("nu_error", "nu_error_low", "nu_error_high", "nu_reconstruction", "nu_reconstruction_centred"):
        end = next((end for end in ("_low", "_high") if name.endswith(end)), "")
        mirrored = f"{name.removesuffix(end)}_base_probe{end}"
        pd.testing.assert_series_equal(own[name][base_only], table[mirrored][base_only], check_names=False)
        pd.testing.assert_series_equal(own[name][~base_only], table[name][~base_only])
    pd.testing.assert_frame_equal(slc.analysis.with_own_probe(own)[own.columns], own)
    with pytest.raises(ValueError, match="latents has no column 'label'"):
        slc.analysis.with_own_probe(table.drop(columns="label"))


CUTS = {"base": slice(0, 3), "chat": slice(3, 6), "pooled": slice(0, 6)}


def test_the_columns_are_what_they_are_called():
    crosscoder, x = random_crosscoder(), random_activations(37)
    diagnosis, f = slc.diagnose(crosscoder, slc.EvalData(activations=x.split(7))), crosscoder.encode(x)
    for j, row in diagnosis.latents.iterrows():
        active = [value for value in f[:, j].tolist() if value > 0]
        assert row.n_active == len(active)
        assert row.frequency == len(active) / len(x)
        assert row.max_activation == pytest.approx(max(active))
        assert row.mean_activation == pytest.approx(sum(active) / len(active))
        d = [part[j].tolist() for part in crosscoder.decoders]
        norms = [math.sqrt(sum(value**2 for value in part)) for part in d]
        assert (row.dec_norm_base, row.dec_norm_chat) == pytest.approx(tuple(norms))
        cosine = sum(a * b for a, b in zip(*d, strict=True)) / (norms[0] * norms[1])
        assert row.cos_sim == pytest.approx(cosine)
        e = [part[j].tolist() for part in crosscoder.encoders]
        norms = [math.sqrt(sum(value**2 for value in part)) for part in e]
        cosine = sum(a * b for a, b in zip(*e, strict=True)) / (norms[0] * norms[1])
        assert (row.enc_cos_sim, row.enc_norm_ratio) == pytest.approx((cosine, norms[1] / norms[0]))
    guess = crosscoder.decode(f)
    fve = {name: variance_explained(x[:, cut].tolist(), guess[:, cut].tolist()) for name, cut in CUTS.items()}
    fve["difference"] = variance_explained_of_difference(x.tolist(), guess.tolist(), 3)
    manifest = diagnosis.manifest
    assert manifest["fve"] == pytest.approx(fve)
    assert manifest["l0"] == pytest.approx((f > 0).sum().item() / len(x))
    assert manifest["n_tokens"] == len(x)


def test_columns_of_the_raw_space_appear_only_when_models_were_scaled_apart():
    x = random_activations(6000)
    plain = slc.diagnose(random_crosscoder(scales=(2.0, 2.0)), slc.EvalData(activations=[x])).latents
    scaled = slc.diagnose(random_crosscoder(scales=(2.0, 3.0)), slc.EvalData(activations=[x])).latents
    assert not [name for name in plain if name.endswith("_raw")]
    torch.testing.assert_close(torch.tensor(scaled.nu_error_raw) * 2 / 3, torch.tensor(scaled.nu_error), equal_nan=True)
    assert scaled.nu_error.notna().any()
    assert (scaled.delta_norm > scaled.delta_norm_raw).all()


def test_a_table_and_its_manifest_survive_the_disk(tmp_path):
    diagnosis = slc.diagnose(random_crosscoder(), slc.EvalData(activations=[random_activations()]))
    diagnosis.save(tmp_path)
    again = slc.Diagnosis.load(tmp_path)
    pd.testing.assert_frame_equal(again.latents, diagnosis.latents)
    assert again.manifest == diagnosis.manifest
    assert again.conclusion == diagnosis.conclusion != ""
    assert {"versions", "models", "hook_name", "n_tokens", "seed", "space", "bounds"} <= set(again.manifest)


def test_a_folder_without_a_table_and_a_foreign_table_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no latents\.parquet"):
        slc.Diagnosis.load(tmp_path)
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "latents.parquet")
    with pytest.raises(ValueError, match="not a latent table"):
        slc.Diagnosis.load(tmp_path)


def test_what_cannot_be_diagnosed_is_refused_by_name():
    crosscoder, x = random_crosscoder(), random_activations()
    unchecked = unwrap(slc.diagnose)
    with pytest.raises(ValueError, match="diagnose needs an inference crosscoder, but got a BatchTopKTraining"):
        unchecked(batchtopk_crosscoder(), slc.EvalData(activations=[x]))
    with pytest.raises(ValueError, match="No tokens to diagnose on"):
        slc.diagnose(crosscoder, slc.EvalData(activations=[]))
    with pytest.raises(ValueError, match="No tokens to diagnose on"):
        slc.diagnose(crosscoder, slc.EvalData(activations=[x[:0]]))
    with pytest.raises(ValueError, match="bounds='abs' must be one of"):
        unchecked(crosscoder, slc.EvalData(activations=[x]), bounds="abs")
    with pytest.raises(ValueError, match="activations are 5 wide, but the crosscoder reads 6"):
        slc.diagnose(crosscoder, slc.EvalData(activations=[x[:, :5]]))


@pytest.mark.parametrize(("value", "column", "name"), [(NAN, 5, "chat"), (-math.inf, 0, "base")])
def test_activations_that_are_not_finite_are_refused_with_their_model_and_place(value, column, name):
    crosscoder, x = random_crosscoder(), random_activations()
    bad = x.clone()
    bad[3, column] = value
    message = f"The {name} model's activations are NaN or infinite on 1 of 40 tokens after the first 80"
    with pytest.raises(ValueError, match=message):
        slc.diagnose(crosscoder, slc.EvalData(activations=[x, x, bad]))


def test_activations_that_overflow_in_the_crosscoders_precision_are_refused():
    crosscoder = slc.ReLUCrosscoder(slc.ReLUCrosscoderConfig(d_models=(3, 3), d_sae=6, dtype="float16"))
    x = random_activations()
    x[0, 0] = 1e6
    with pytest.raises(ValueError, match="The base model's activations are NaN or infinite on 1 of 40"):
        slc.diagnose(crosscoder, slc.EvalData(activations=[x], max_norm_ratio=None))


def test_unflattened_activations_are_refused_with_the_way_out():
    unchecked = unwrap(validate_activations)
    with pytest.raises(ValueError, match=r"shape \(2, 20, 6\).*Flatten \(batch, pos, d_in\)"):
        unchecked(random_activations().view(2, 20, 6), slc.stacking.StackedLayout((3, 3)), "at step 0")


def test_a_crosscoder_of_another_pair_and_one_without_a_hook_are_refused():
    pair = slc.HookedModelPair.from_pretrained("tiny-base", "tiny-null")
    crosscoder = relu_crosscoder(torch.eye(192, dtype=torch.float64)[:4], d_models=(96, 96))
    tokens = torch.zeros(2, 4, dtype=torch.long)
    with pytest.raises(ValueError, match="config has no hook_name"):
        slc.diagnose(crosscoder, slc.EvalData(pair=pair, tokens=tokens))
    metadata = crosscoder.cfg.metadata
    metadata.model_name, metadata.chat_model_name, metadata.hook_name = "tiny-base", "tiny-chat", "hook_embed"
    with pytest.raises(ValueError, match="trained on tiny-base and tiny-chat, but the pair is tiny-base and tiny-null"):
        slc.diagnose(crosscoder, slc.EvalData(pair=pair, tokens=tokens))


def test_one_tensor_of_activations_is_as_good_as_batches():
    crosscoder, x = random_crosscoder(), random_activations(5000)
    pd.testing.assert_frame_equal(
        slc.diagnose(crosscoder, slc.EvalData(activations=x)).latents,
        slc.diagnose(crosscoder, slc.EvalData(activations=x.split(700))).latents,
        rtol=1e-9,
    )


@pytest.mark.parametrize(("cut", "total"), [(None, 5000), (700, None)])
def test_progress_is_counted_in_tokens_to_a_total_that_is_said_if_it_is_known(cut, total, monkeypatch):
    x, bars = random_activations(5000), []
    bar_class = diagnose_module.tqdm

    def watched(**options):
        bars.append(bar_class(**options))
        return bars[-1]

    monkeypatch.setattr(diagnose_module, "tqdm", watched)
    slc.diagnose(random_crosscoder(), slc.EvalData(activations=x if cut is None else x.split(cut)))
    (bar,) = bars
    assert (bar.total, bar.n, bar.unit) == (total, 5000, "token")


def test_a_pair_with_tokens_is_the_same_as_its_activations():
    pair = slc.HookedModelPair.from_pretrained("tiny-base", "tiny-null")
    crosscoder = relu_crosscoder(torch.randn(8, 192, dtype=torch.float64), d_models=(96, 96))
    crosscoder.cfg.metadata.hook_name = TINY_HOOK
    tokens = torch.arange(160).view(8, 20)
    diagnosis = slc.diagnose(crosscoder, slc.EvalData(pair=pair, tokens=tokens, batch_size=3))
    given = slc.diagnose(crosscoder, slc.EvalData(activations=harvest(pair, tokens, TINY_HOOK)))
    pd.testing.assert_frame_equal(diagnosis.latents, given.latents)
    assert diagnosis.manifest["n_tokens"] == 160


def test_models_without_a_common_direction_keep_everything_that_is_not_about_one():
    crosscoder, x = random_crosscoder(d_models=(2, 4)), random_activations()
    diagnosis = slc.diagnose(crosscoder, slc.EvalData(activations=[x]), min_active=1)
    table = diagnosis.latents
    nowhere = [name for name in table if name.startswith(("nu_", "beta_", "cos", "enc_"))]
    nowhere = [name for name in nowhere if name != "nu_kind" and not name.endswith("_basis_free")]
    assert table[nowhere].isna().all(axis=None)
    assert (table.n_active > 0).all()
    assert table.delta_norm.notna().all()
    assert set(table.verdict) <= {"shared", "other", "undetermined"}
    assert set(diagnosis.manifest["fve"]) == {"base", "chat", "pooled", "difference"}


def test_a_dead_latent_and_one_that_writes_nowhere_have_nothing_to_report():
    crosscoder, x = random_crosscoder(), random_activations(600)
    with torch.no_grad():
        crosscoder.b_enc[1] = -1e6
        crosscoder.W_dec[2] = 0
        crosscoder.W_dec[3, :3] = 0
    table = slc.diagnose(crosscoder, slc.EvalData(activations=[x])).latents
    assert table.dead.tolist() == [False, True, False, False, False, False]
    assert (table.verdict[1], table.label[2], table.verdict[2]) == ("dead", "undefined", "undefined")
    assert table.loc[1, ["mean_activation", "nu_error", "nu_error_unfiltered", "beta_error_chat"]].isna().all()
    assert (table.frequency[1], table.max_activation[1]) == (0, 0)
    assert table.loc[2, ["delta_norm", "cos_sim", "nu_error_unfiltered"]].isna().all()
    assert (table.delta_norm[3], table.label[3]) == (1, "chat_only")
    assert math.isnan(table.cos_sim[3])
    assert table.cos_sim.notna().tolist() == [True, True, False, False, True, True]


def test_the_nu_and_beta_columns_are_latent_scalings():
    crosscoder, x = random_crosscoder(), random_activations(600)
    table, scaling = slc.diagnose(crosscoder, slc.EvalData(activations=x.split(100))).latents, scaling_of(crosscoder, x)
    expected = {}
    for target in ("error", "reconstruction"):
        expected[f"nu_{target}"] = scaling.nu(target)
        expected[f"nu_{target}_low"], expected[f"nu_{target}_high"] = scaling.nu_interval(target)
        expected[f"nu_{target}_base_probe"] = scaling.nu(target, probe=0)
        expected[f"nu_{target}_unfiltered"] = scaling.nu(target, significant=False)
        for m, name in enumerate(("base", "chat")):
            expected[f"beta_{target}_{name}"] = scaling.beta(target, m)
    for name, values in expected.items():
        assert table[name].tolist() == pytest.approx(values.tolist(), nan_ok=True), name
    one_block = slc.diagnose(crosscoder, slc.EvalData(activations=[x[:200]])).latents
    assert one_block.nu_error.isna().all()
    assert one_block.nu_error_unfiltered.notna().all()


def test_cosines_do_not_depend_on_how_short_a_decoder_is():
    crosscoder, x = random_crosscoder(), random_activations()
    expected = slc.diagnose(crosscoder, slc.EvalData(activations=[x])).latents.cos_sim
    with torch.no_grad():
        crosscoder.W_dec[:, :3] *= 1e-12
    pd.testing.assert_series_equal(slc.diagnose(crosscoder, slc.EvalData(activations=[x])).latents.cos_sim, expected)


def test_the_options_reach_the_verdict_and_the_manifest():
    crosscoder, x = faulty_world()
    x[:, 0] -= 0.4 * x[:, 8]  # the base model points away from latent 0, less than half as far
    data = slc.EvalData(activations=[x], max_norm_ratio=None)
    both = [slc.diagnose(crosscoder, data, min_active=3, bounds=bounds) for bounds in ("signed", "absolute")]
    signed, absolute = (diagnosis.latents for diagnosis in both)
    assert signed.nu_error[0] < -0.2
    assert (signed.verdict[0], absolute.verdict[0]) == ("chat_specific", "complete_shrinkage")
    assert slc.diagnose(crosscoder, slc.EvalData(activations=[x], max_norm_ratio=None)).latents.verdict[6] == "rare"
    assert signed.verdict[6] == "undetermined"  # all its tokens are in one block
    assert [diagnosis.bounds for diagnosis in both] == ["signed", "absolute"]
    assert both[0].manifest["min_active"] == 3


def test_the_manifest_says_what_the_table_is_of():
    crosscoder = random_crosscoder(scales=(1.0, 2.0))
    metadata = crosscoder.cfg.metadata
    metadata.model_name, metadata.chat_model_name, metadata.hook_name = "a", "b", "blocks.0.hook_resid_post"
    attrs = slc.diagnose(crosscoder, slc.EvalData(activations=[random_activations()])).manifest
    assert attrs["models"] == ["a", "b"]
    assert attrs["hook_name"] == "blocks.0.hook_resid_post"
    assert attrs["space"] == "trained (scaled)"
    assert (attrs["architecture"], attrs["score"]) == ("crosscoder", "sum")
    assert all(attrs["versions"].values())


@pytest.mark.parametrize(("context_size", "block"), [(64, 256), (48, 240), (300, 300), (1024, 1024)])
def test_a_context_is_never_spread_over_shards(context_size, block, monkeypatch):
    """Its tokens are not independent, so resampling parts of it would make intervals too narrow."""
    blocks = []
    original = slc.analysis.LatentScaling.__init__

    def watched(self, crosscoder, **options):
        blocks.append(options["block_size"])
        original(self, crosscoder, **options)

    monkeypatch.setattr(slc.analysis.LatentScaling, "__init__", watched)
    pair = slc.HookedModelPair.from_pretrained("tiny-base", "tiny-null")
    monkeypatch.setattr(data_source, "validate_pair", lambda crosscoder, pair: TINY_HOOK)  # of other widths
    monkeypatch.setattr(data_source, "harvest", lambda *_: [random_activations(2 * context_size)])
    crosscoder = random_crosscoder()
    crosscoder.cfg.metadata.hook_name = TINY_HOOK
    slc.diagnose(crosscoder, slc.EvalData(pair=pair, tokens=torch.zeros(2, context_size, dtype=torch.long)))
    assert blocks == [block]
