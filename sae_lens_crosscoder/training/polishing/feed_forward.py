"""Turns a polished dictionary back into a feed-forward crosscoder."""

import torch

from sae_lens_crosscoder.crosscoders.batchtopk import BatchTopKTrainingCrosscoder
from sae_lens_crosscoder.training.polishing.rounds import PolishState


@torch.no_grad()
def take_dictionary(crosscoder: BatchTopKTrainingCrosscoder, state: PolishState) -> None:
    """Give a crosscoder the polished dictionary, in place, and the encoder that reads its atoms."""
    crosscoder.W_dec.copy_(state.W_dec)
    crosscoder.W_enc.copy_(state.W_enc.T)
    crosscoder.b_enc.copy_(-state.W_enc @ state.b_dec)
    crosscoder.b_dec.copy_(state.b_dec)
