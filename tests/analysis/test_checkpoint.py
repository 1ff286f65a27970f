"""A diagnosis that was interrupted goes on to the very table of one that was not, and of nothing else."""

import os

import pandas as pd
import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.activations.harvest import harvest
from sae_lens_crosscoder.analysis import inputs as data_source
from sae_lens_crosscoder.models.tiny import TINY_HOOK
from sae_lens_crosscoder.storage import accumulators as checkpoint
from tests.analysis.conftest import random_activations, random_crosscoder, relu_crosscoder


class PowerCutError(Exception):
    pass


@pytest.fixture(autouse=True)
def _every_batch_is_saved(monkeypatch):
    monkeypatch.setattr(checkpoint, "_SECONDS_BETWEEN_SAVES", 0.0)


def until_power_cut(batches, n):
    """The first n batches, and then nothing works any more."""
    yield from batches[:n]
    raise PowerCutError


def limited_crosscoder(seed=0):
    """A crosscoder that knows the largest norms, so that nothing is read to measure them."""
    crosscoder = random_crosscoder(seed)
    crosscoder.cfg.metadata.max_norms = [100.0, 100.0]
    return crosscoder


def batches_of_all_sizes():
    return list(random_activations(3000).split([700, 100, 1, 0, 1000, 300, 899]))


@pytest.mark.parametrize("free_directions", ["model_specific", "all"])
@pytest.mark.parametrize("cuts", [(1,), (2, 3, 5), (7,), (4, 7, 7)])
def test_an_interrupted_diagnosis_gives_the_unbroken_table_bit_for_bit(cuts, free_directions, tmp_path):
    crosscoder, batches, path = limited_crosscoder(), batches_of_all_sizes(), tmp_path / "sums"
    options = {"free_directions": free_directions, "min_active": 1}
    unbroken = slc.diagnose(crosscoder, slc.EvalData(activations=batches), **options)
    for cut in cuts:
        with pytest.raises(PowerCutError):
            slc.diagnose(
                crosscoder, slc.EvalData(activations=until_power_cut(batches, cut)), checkpoint_path=path, **options
            )
        assert path.exists()
    resumed = slc.diagnose(crosscoder, slc.EvalData(activations=batches), checkpoint_path=path, **options)
    pd.testing.assert_frame_equal(resumed.latents, unbroken.latents, check_exact=True)
    assert resumed.manifest == unbroken.manifest
    assert list(tmp_path.iterdir()) == []


def test_models_run_only_on_prompts_that_the_checkpoint_lacks(monkeypatch, tmp_path):
    pair = slc.HookedModelPair.from_pretrained("tiny-base", "tiny-null")
    rows = torch.randn(8, 192, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    crosscoder = relu_crosscoder(rows, d_models=(96, 96))
    crosscoder.cfg.metadata.hook_name = TINY_HOOK
    crosscoder.cfg.metadata.max_norms = [1000.0, 1000.0]
    tokens, path, seen = torch.arange(160).view(8, 20), tmp_path / "sums", []

    def watched(pair, prompts, *args):
        seen.append(len(prompts))
        batches = list(harvest(pair, prompts, *args))
        return until_power_cut(batches, 2) if len(seen) == 1 else batches

    unbroken = slc.diagnose(crosscoder, slc.EvalData(pair=pair, tokens=tokens, batch_size=3)).latents
    monkeypatch.setattr(data_source, "harvest", watched)
    with pytest.raises(PowerCutError):
        slc.diagnose(crosscoder, slc.EvalData(pair=pair, tokens=tokens, batch_size=3), checkpoint_path=path)
    with pytest.raises(ValueError, match="another data source"):
        slc.diagnose(crosscoder, slc.EvalData(pair=pair, tokens=tokens, batch_size=4), checkpoint_path=path)
    with pytest.raises(ValueError, match="another data source"):
        slc.diagnose(crosscoder, slc.EvalData(pair=pair, tokens=tokens.flip(1), batch_size=3), checkpoint_path=path)
    table = slc.diagnose(crosscoder, slc.EvalData(pair=pair, tokens=tokens, batch_size=3), checkpoint_path=path).latents
    pd.testing.assert_frame_equal(table, unbroken, check_exact=True)
    assert seen == [8, 2]


def test_one_tensor_goes_on_as_well(monkeypatch, tmp_path):
    crosscoder, x, path = random_crosscoder(), random_activations(5000), tmp_path / "sums"
    unbroken = slc.diagnose(crosscoder, slc.EvalData(activations=x)).latents
    add, n_added = slc.analysis.LatentScaling.add, []

    def watched(self, activations, *args):
        if len(n_added) == 2:
            raise PowerCutError
        n_added.append(len(activations))
        add(self, activations, *args)

    monkeypatch.setattr(slc.analysis.LatentScaling, "add", watched)
    with pytest.raises(PowerCutError):
        slc.diagnose(crosscoder, slc.EvalData(activations=x), checkpoint_path=path)
    monkeypatch.setattr(slc.analysis.LatentScaling, "add", add)
    pd.testing.assert_frame_equal(
        slc.diagnose(crosscoder, slc.EvalData(activations=x), checkpoint_path=path).latents, unbroken, check_exact=True
    )


def test_sums_of_anything_else_are_refused(tmp_path):
    crosscoder, batches, path = limited_crosscoder(), batches_of_all_sizes(), tmp_path / "sums"
    with pytest.raises(PowerCutError):
        slc.diagnose(crosscoder, slc.EvalData(activations=until_power_cut(batches, 3)), checkpoint_path=path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="written by a diagnosis with another crosscoder"):
        slc.diagnose(limited_crosscoder(seed=1), slc.EvalData(activations=batches), checkpoint_path=path)
    with pytest.raises(ValueError, match="another data source"):
        slc.diagnose(crosscoder, slc.EvalData(activations=batches[1:]), checkpoint_path=path)
    with pytest.raises(ValueError, match="another set of options"):
        slc.diagnose(crosscoder, slc.EvalData(activations=batches), checkpoint_path=path, free_directions="all")
    with pytest.raises(ValueError, match="has 3 batches, but the activations only 2"):
        slc.diagnose(crosscoder, slc.EvalData(activations=batches[:2]), checkpoint_path=path)
    assert path.read_bytes() == before
    path.write_text("notes")
    with pytest.raises(ValueError, match="not a checkpoint of a diagnosis"):
        slc.diagnose(crosscoder, slc.EvalData(activations=batches), checkpoint_path=path)
    with pytest.raises(ValueError, match="in a folder that does not exist"):
        slc.diagnose(crosscoder, slc.EvalData(activations=batches), checkpoint_path=tmp_path / "nowhere" / "sums")


def test_a_cut_while_writing_leaves_the_last_whole_checkpoint(monkeypatch, tmp_path):
    crosscoder, batches, path = limited_crosscoder(), batches_of_all_sizes(), tmp_path / "sums"
    fsync, n_saves = os.fsync, []

    def failing(descriptor):
        fsync(descriptor)
        n_saves.append(descriptor)
        if len(n_saves) == 3:
            raise PowerCutError

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(PowerCutError):
        slc.diagnose(crosscoder, slc.EvalData(activations=batches), checkpoint_path=path)
    pd.testing.assert_frame_equal(
        slc.diagnose(crosscoder, slc.EvalData(activations=batches), checkpoint_path=path).latents,
        slc.diagnose(crosscoder, slc.EvalData(activations=batches)).latents,
        check_exact=True,
    )


def test_saving_waits_its_time(monkeypatch, tmp_path):
    monkeypatch.setattr(checkpoint, "_SECONDS_BETWEEN_SAVES", 1e9)
    path = tmp_path / "sums"
    with pytest.raises(PowerCutError):
        slc.diagnose(
            random_crosscoder(),
            slc.EvalData(activations=until_power_cut(batches_of_all_sizes(), 5)),
            checkpoint_path=path,
        )
    assert not path.exists()
