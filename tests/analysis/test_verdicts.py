"""Classes and verdicts, on their borders and on crosscoders whose fault is built in."""

import math

import pandas as pd
import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.analysis.delta_norm import label
from sae_lens_crosscoder.analysis.verdict import verdict
from tests.analysis.conftest import random_activations, random_crosscoder, relu_crosscoder
from tests.crosscoders.conftest import batchtopk_crosscoder

NAN = float("nan")


def test_delta_norm_flips_when_the_models_swap():
    norms = torch.rand(50, 2, dtype=torch.float64)
    torch.testing.assert_close(slc.delta_norm(norms.flip(-1)), 1 - slc.delta_norm(norms))


def test_delta_norm_is_a_latents_alone_and_not_its_units():
    norms = torch.rand(50, 2, dtype=torch.float64)
    torch.testing.assert_close(slc.delta_norm(7 * norms), slc.delta_norm(norms))


def test_chat_only_means_a_base_norm_below_a_fifth():
    ratios = torch.linspace(0, 1, 1001, dtype=torch.float64)
    labels = [label(d) for d in slc.delta_norm(torch.stack([ratios, torch.ones_like(ratios)], dim=-1)).tolist()]
    for ratio, name in zip(ratios.tolist(), labels, strict=True):
        if abs(ratio - 0.2) > 1e-6:
            assert (name == "chat_only") == (ratio < 0.2)


def test_three_models_have_no_delta_norm():
    assert slc.delta_norm(torch.ones(4, 3)).isnan().all()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("chat_only", 0, 0.0, 0.0), "dead"),
        (("undefined", 0, NAN, NAN), "dead"),
        (("chat_only", 99, 0.0, 0.0), "rare"),
        (("chat_only", 100, NAN, 0.0), "undetermined"),
        (("chat_only", 100, 0.0, NAN), "undetermined"),
        (("chat_only", 100, 0.2, 0.9), "complete_shrinkage"),
        (("chat_only", 100, 0.19, 0.5), "latent_decoupling"),
        (("chat_only", 100, 0.19, 0.49), "chat_specific"),
        (("base_only", 100, 0.19, 0.49), "base_specific"),
        (("base_only", 100, 0.3, 0.0), "complete_shrinkage"),
        (("shared", 100, 0.0, 0.0), "shared"),
        (("other", 100, 0.0, 0.0), "other"),
        (("chat_only", 100, -3.0, -3.0), "chat_specific"),
    ],
)
def test_the_first_verdict_that_holds(arguments, expected):
    assert verdict(*arguments) == expected


def test_absolute_bounds_reject_negative_nu():
    assert verdict("chat_only", 100, -0.3, 0.0, bounds="absolute") == "complete_shrinkage"
    assert verdict("chat_only", 100, 0.0, -0.6, bounds="absolute") == "latent_decoupling"


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
    table = slc.diagnose(crosscoder, activations=x.split(4096))
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
    table = slc.diagnose(crosscoder, activations=[x])
    other = slc.diagnose(mirrored, activations=[x[:, swap]])
    pd.testing.assert_series_equal(other.delta_norm, 1 - table.delta_norm)
    mirror = {"chat_specific": "base_specific", "base_specific": "chat_specific"}
    assert other.verdict.tolist() == [mirror.get(name, name) for name in table.verdict]
    pd.testing.assert_series_equal(other.nu_error, table.nu_error_base_probe, check_names=False)


def test_the_columns_are_what_they_are_called():
    crosscoder, x = random_crosscoder(), random_activations()
    table, f = slc.diagnose(crosscoder, activations=x.split(7)), crosscoder.encode(x)
    for j, row in table.iterrows():
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
    assert table.attrs["l0"] == pytest.approx((f > 0).sum().item() / len(x))
    assert table.attrs["n_tokens"] == len(x)


def test_columns_of_the_raw_space_appear_only_when_models_were_scaled_apart():
    x = random_activations()
    plain = slc.diagnose(random_crosscoder(scales=(2.0, 2.0)), activations=[x])
    scaled = slc.diagnose(random_crosscoder(scales=(2.0, 3.0)), activations=[x])
    assert not [name for name in plain if name.endswith("_raw")]
    torch.testing.assert_close(torch.tensor(scaled.nu_error_raw) * 2 / 3, torch.tensor(scaled.nu_error), equal_nan=True)
    assert (scaled.delta_norm > scaled.delta_norm_raw).all()


def test_a_table_and_its_manifest_survive_the_disk(tmp_path):
    table = slc.diagnose(random_crosscoder(), activations=[random_activations()])
    slc.write_latents(table, tmp_path)
    again = slc.read_latents(tmp_path)
    pd.testing.assert_frame_equal(again, table)
    assert again.attrs == table.attrs
    assert {"versions", "models", "hook_name", "n_tokens", "seed", "space", "bounds"} <= set(again.attrs)


def test_a_folder_without_a_table_and_a_foreign_table_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no latents\.parquet"):
        slc.read_latents(tmp_path)
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "latents.parquet")
    with pytest.raises(ValueError, match="not a latent table"):
        slc.read_latents(tmp_path)


def test_what_cannot_be_diagnosed_is_refused_by_name():
    crosscoder, x = random_crosscoder(), random_activations()
    unchecked = getattr(slc.diagnose, "__wrapped__", slc.diagnose)
    with pytest.raises(ValueError, match="diagnose needs an inference crosscoder, but got a BatchTopKTraining"):
        unchecked(batchtopk_crosscoder(), activations=[x])
    with pytest.raises(ValueError, match="diagnose needs data"):
        slc.diagnose(crosscoder)
    with pytest.raises(ValueError, match="either a pair with tokens or activations"):
        slc.diagnose(crosscoder, tokens=torch.zeros(1, 1, dtype=torch.long), activations=[x])
    with pytest.raises(ValueError, match="gave no tokens"):
        slc.diagnose(crosscoder, activations=[])
    with pytest.raises(ValueError, match="last axis is 5 wide"):
        slc.diagnose(crosscoder, activations=[x[:, :5]])
    bad = x.clone()
    bad[3, 5] = NAN
    with pytest.raises(ValueError, match=r"The chat model's activations are NaN or infinite on 1 of 40 tokens"):
        slc.diagnose(crosscoder, activations=[bad])


def test_a_crosscoder_of_another_pair_and_one_without_a_hook_are_refused():
    pair = slc.HookedModelPair.from_pretrained("tiny-base", "tiny-null")
    crosscoder = relu_crosscoder(torch.eye(192, dtype=torch.float64)[:4], d_models=(96, 96))
    tokens = torch.zeros(2, 4, dtype=torch.long)
    with pytest.raises(ValueError, match="does not say which hook"):
        slc.diagnose(crosscoder, pair, tokens)
    metadata = crosscoder.cfg.metadata
    metadata.model_name, metadata.chat_model_name, metadata.hook_name = "tiny-base", "tiny-chat", "hook_embed"
    with pytest.raises(ValueError, match="trained on tiny-base and tiny-chat, but the pair is tiny-base and tiny-null"):
        slc.diagnose(crosscoder, pair, tokens)
