"""The threshold that is estimated for a file without one turns on k latents per token, in the file's own units."""

import json

import pytest
import torch

import sae_lens_crosscoder as slc
from tests.loading.foreign_files import D_SAE, LAYOUTS, Layout, batchtopk, crosscode, crosscode_cfg, normalised, tokens
from tests.reference import foreign_layouts as ref

pytestmark = pytest.mark.filterwarnings("ignore:.*was loaded as .*, with assumed settings:UserWarning")
N = 400


def without_threshold(tensors):
    return {name: tensor for name, tensor in tensors.items() if name != "threshold"}


FILES = {
    "dedicated": Layout(LAYOUTS["dedicated"].tensors, "model.pt", LAYOUTS["dedicated"].settings),
    "batchtopk": Layout(without_threshold(batchtopk())),
    "normalised": Layout(without_threshold(normalised([0.4, 0.15]))),
    "crosscode": Layout(crosscode(2, 1), "model.pt", crosscode_cfg(2, 1, "BatchTopkActivation", k_per_example=3)),
}


@pytest.mark.parametrize("k", [1, 2.5, 4])
@pytest.mark.parametrize("name", FILES)
def test_k_latents_per_token_are_on(tmp_path, name, k):
    folder, x = FILES[name].write(tmp_path), tokens(n=N).flatten(1)
    theta = slc.loading.estimate_theta(folder, x, k=k)
    crosscoder = slc.load(folder, theta=theta, dtype="float64")
    n_positive = (slc.load(folder, allow_relu=True, dtype="float64").encode(x.double()) > 0).sum()
    assert (crosscoder.encode(x.double()) > 0).sum() == min(round(k * N), n_positive)


def test_k_is_the_files_and_the_latents_are_mostly_those_of_its_own_topk(tmp_path):
    layout = FILES["dedicated"]
    folder, x = layout.write(tmp_path), tokens(n=N)
    k = json.loads((folder / "config.json").read_text())["k"]
    crosscoder = slc.load(folder, theta=slc.loading.estimate_theta(folder, x.flatten(1)), dtype="float64")
    ours = crosscoder.encode(x.flatten(1).double()) > 0
    ids = [2, 3, 4, 0, 1, *range(5, D_SAE)]  # base's own latents come first here
    lists = layout.lists()
    theirs = [ref.dedicated_features(lists, token[::-1], k=k)[0] for token in x.tolist()]
    theirs = (torch.tensor(theirs) > 0)[:, ids]
    assert (ours & theirs).sum() / (ours | theirs).sum() > 0.6
    assert ours.sum() == k * N


def test_order_and_scales_of_the_caller_are_used(tmp_path):
    folder, x = FILES["dedicated"].write(tmp_path), tokens(n=N)
    usual = slc.loading.estimate_theta(folder, x.flatten(1))
    assert usual == slc.loading.estimate_theta(folder, x.flip(1).flatten(1), model_order="base_chat")
    assert usual == pytest.approx(
        slc.loading.estimate_theta(folder, x.flatten(1) / 2, activation_scales=(2.0, 2.0)), rel=1e-9
    )


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("batchtopk", {"k": 0}, r"k=0 must be between 0 and the 9 latents"),
        ("batchtopk", {"k": 9}, r"k=9 must be between 0 and the 9 latents"),
        ("crosscode", {}, r"k=None must be between .*: pass k=\.\.\., as in training"),
    ],
)
def test_an_impossible_k_is_refused(tmp_path, name, arguments, message):
    with pytest.raises(ValueError, match=message):
        slc.loading.estimate_theta(FILES[name].write(tmp_path), tokens().flatten(1), **arguments)


def test_too_few_tokens_and_other_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"1 tokens are too few for k=0.2"):
        slc.loading.estimate_theta(FILES["batchtopk"].write(tmp_path / "a"), tokens(n=1).flatten(1), k=0.2)
    with pytest.raises(ValueError, match="reads several hooks with a gate per hook"):
        slc.loading.estimate_theta(LAYOUTS["openmoss"].write(tmp_path / "b"), tokens(3).flatten(1), k=2)
    slc.load(LAYOUTS["A"].write(tmp_path / "c")).save_model(tmp_path / "ours")
    with pytest.raises(ValueError, match="has no weights of a published layout"):
        slc.loading.estimate_theta(tmp_path / "ours", tokens().flatten(1), k=2)
