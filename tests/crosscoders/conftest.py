"""Small random crosscoders in float64, and their weights as nested lists for the references."""

from dataclasses import dataclass

import pytest
import torch
from sae_lens.saes.sae import TrainStepInput

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.crosscoders import l1

D_SAE, BATCH = 11, 7
STEP = {"training_step": "sparse"}
"""Fields that every training crosscoder gets; `each_training_step` changes them."""


@pytest.fixture(params=["sparse", "dense"])
def each_training_step(request, monkeypatch):
    """Runs a test with the fast step and with the one it is the twin of; L1 is sparse however much is on."""
    monkeypatch.setitem(STEP, "training_step", request.param)
    monkeypatch.setattr(l1, "_SPARSE_BELOW", 2.0)
    return request.param


def dense(tensor):
    """What the sparse step leaves out put back as zeros."""
    return tensor.to_dense() if tensor.is_sparse else tensor


def perturb(crosscoder):
    """Random weights in place of the paired start, so that no symmetry hides a mistake."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in crosscoder.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return crosscoder


def l1_crosscoder(d_models=(3, 4), **fields):
    cfg = slc.L1CrosscoderTrainingConfig(d_models=d_models, d_sae=D_SAE, dtype="float64", **STEP, **fields)
    return perturb(slc.L1TrainingCrosscoder(cfg))


def batchtopk_crosscoder(d_models=(3, 4), **fields):
    fields = {"k": 2.5, "decoder_bias_init": "zeros"} | fields
    cfg = slc.BatchTopKCrosscoderTrainingConfig(d_models=d_models, d_sae=D_SAE, dtype="float64", **STEP, **fields)
    return perturb(slc.BatchTopKTrainingCrosscoder(cfg))


def stacked_batch(d_in=7, n=BATCH, seed=5):
    return torch.randn(n, d_in, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def step(x, l1=0.3, dead=None, n_steps=0):
    dead = torch.zeros(D_SAE, dtype=torch.bool) if dead is None else dead
    return TrainStepInput(
        sae_in=x,
        coefficients={"l1": l1, "l0": l1},
        dead_neuron_mask=dead,
        n_training_steps=n_steps,
        is_logging_step=False,
    )


@dataclass
class Lists:
    """A crosscoder's weights as nested lists: encoders[j][m], decoders[j][m], b_enc[j], b_dec[m]."""

    encoders: list
    decoders: list
    b_enc: list
    b_dec: list

    def tokens(self, x):
        widths = [len(part) for part in self.b_dec]
        starts = [sum(widths[:m]) for m in range(len(widths))]
        return [[row[s : s + w] for s, w in zip(starts, widths, strict=True)] for row in x.tolist()]


def as_lists(crosscoder):
    widths = crosscoder.cfg.d_models
    cuts = [sum(widths[:m]) for m in range(len(widths) + 1)]

    def cut(row):
        return [row[a:b] for a, b in zip(cuts, cuts[1:], strict=False)]

    return Lists(
        encoders=[cut(row) for row in crosscoder.W_enc.T.tolist()],
        decoders=[cut(row) for row in crosscoder.W_dec.tolist()],
        b_enc=crosscoder.b_enc.tolist(),
        b_dec=cut(crosscoder.b_dec.tolist()),
    )


@pytest.fixture(params=["l1", "batchtopk"])
def any_crosscoder(request):
    return {"l1": l1_crosscoder, "batchtopk": batchtopk_crosscoder}[request.param]()
