"""What delphi reads from the files, read here as its loader does, is the dense encoding."""

import copy
import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.interpretation import delphi, write_delphi_cache
from tests.interpretation.conftest import HOOK


@pytest.mark.parametrize(("n_splits", "ranges"), [(1, ["0_5"]), (4, ["0_0", "1_2", "3_3", "4_5"])])
def test_it_holds_every_score_where_delphi_looks_for_it(planted, tmp_path, n_splits, ranges):
    tokens = planted.tokens[:9]
    target = write_delphi_cache(
        planted.crosscoder, planted.pair, tokens, tmp_path / "latents", n_splits=n_splits, batch_size=4
    )
    assert target == tmp_path / "latents" / HOOK
    files = sorted(target.glob("*.safetensors"), key=lambda file: int(file.stem.split("_")[0]))
    assert [file.stem for file in files] == ranges
    found = np.zeros((9, 32, 6), dtype="float16")
    for file in files:
        split = load_file(file)
        first, last = map(int, file.stem.split("_"))
        assert split["locations"].dtype == np.uint16
        assert split["activations"].dtype == np.float16
        for (prompt, position, latent), score in zip(split["locations"], split["activations"], strict=True):
            assert first + latent <= last
            found[prompt, position, first + latent] += score
        np.testing.assert_array_equal(split["tokens"], tokens.numpy())
    with torch.no_grad():
        expected = planted.crosscoder.encode(planted.pair.activations(tokens, HOOK).double()).half()
    np.testing.assert_array_equal(found, expected.numpy())
    config = json.loads((target / "config.json").read_text())
    assert (config["cache_ctx_len"], config["n_tokens"], config["n_splits"]) == (32, 9 * 32, n_splits)


def test_tokens_that_training_left_out_as_dominant_have_no_activations(planted, tmp_path, monkeypatch):
    tokens, harvest = planted.tokens[:4], delphi.harvest
    dominant = torch.arange(4 * 32) % 5 == 0

    def with_dominant_tokens(*args):
        yield torch.cat(list(harvest(*args))) * torch.where(dominant, 100.0, 1.0)[:, None]

    monkeypatch.setattr(delphi, "harvest", with_dominant_tokens)
    crosscoder = copy.deepcopy(planted.crosscoder)
    found = {}
    for max_norms in (None, [50.0, 50.0]):
        crosscoder.cfg.metadata.max_norms = max_norms
        target = write_delphi_cache(crosscoder, planted.pair, tokens, tmp_path, n_splits=1)
        locations = load_file(next(target.glob("*.safetensors")))["locations"].astype(int).tolist()
        found[max_norms is None] = locations
    ordinary = [place for place in found[True] if not dominant[32 * place[0] + place[1]]]
    assert 0 < len(ordinary) < len(found[True])
    assert found[False] == ordinary


def test_what_delphi_cannot_hold_is_refused(planted, tmp_path):
    with pytest.raises(ValueError, match="n_splits=7 must be between 1 and 6, the number of latents"):
        write_delphi_cache(planted.crosscoder, planted.pair, planted.tokens, tmp_path, n_splits=7)
    loud = slc.HookedModelPair(planted.pair.base, planted.pair.base)
    with torch.no_grad():
        loud.base.W_E.mul_(1e5)
    try:
        with pytest.raises(ValueError, match=r"An activation of 1\d{5} overflows float16"):
            write_delphi_cache(planted.crosscoder, loud, planted.tokens[:2], tmp_path)
    finally:
        with torch.no_grad():
            loud.base.W_E.div_(1e5)
