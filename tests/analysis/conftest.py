"""Hand-built inference crosscoders in float64."""

import torch

import sae_lens_crosscoder as slc

D_MODELS, D_SAE = (3, 3), 6


def relu_crosscoder(W_dec, b_dec=None, W_enc=None, b_enc=None, scales=None, d_models=D_MODELS):
    """An inference crosscoder with these weights; the encoder is the decoder's transpose unless given."""
    W_dec = torch.as_tensor(W_dec, dtype=torch.float64)
    cfg = slc.ReLUCrosscoderConfig(d_models=d_models, d_sae=len(W_dec), dtype="float64", activation_scales=scales)
    crosscoder = slc.ReLUCrosscoder(cfg)
    zeros = torch.zeros(len(W_dec), dtype=torch.float64)
    with torch.no_grad():
        crosscoder.W_dec.copy_(W_dec)
        crosscoder.W_enc.copy_(W_dec.T if W_enc is None else W_enc)
        crosscoder.b_enc.copy_(zeros if b_enc is None else b_enc)
        crosscoder.b_dec.copy_(torch.zeros(sum(d_models)) if b_dec is None else b_dec)
    return crosscoder


def random_crosscoder(seed=0, scales=None, d_models=D_MODELS):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    d_in = sum(d_models)
    return relu_crosscoder(draw(D_SAE, d_in), draw(d_in), draw(d_in, D_SAE), draw(D_SAE), scales, d_models)


def random_activations(n=40, seed=1, d_in=6):
    return torch.randn(n, d_in, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scaling_of(crosscoder, activations, batch=None, **kwargs):
    scaling = slc.analysis.LatentScaling(crosscoder, **kwargs)
    for part in activations.split(batch or len(activations)):
        f = crosscoder.encode(part)
        scaling.add(part, f, crosscoder.decode(f))
    return scaling


def lists(crosscoder, x):
    """What the references take: activations, scores, decoder and bias, cut by model."""

    def cut(rows):
        return [[row[:3], row[3:]] for row in rows]

    f = crosscoder.encode(x)
    return cut(x.tolist()), f.tolist(), cut(crosscoder.W_dec.tolist()), cut([crosscoder.b_dec.tolist()])[0]
