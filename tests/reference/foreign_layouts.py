"""Other people's crosscoders, one number at a time, on their tensors as nested lists and in their order of axes."""

import math


def _norm(vector):
    return math.sqrt(sum(value * value for value in vector))


def dec_norm_diff(base, chat):
    """The authors' measure of where a latent writes, in their direction: 0 for chat-only."""
    return 0.5 * ((base - chat) / max(base, chat) + 1)


def code_norm(norm_id, directions):
    """The authors' norm of one latent from its decoder directions, by id; none given is the first."""
    norms = [_norm(direction) for direction in directions]
    together = math.sqrt(sum(norm * norm for norm in norms))
    return {1: sum(norms), 2: together, 3: together + 0.1 * sum(norms), 4: 1.0}[norm_id]


def dictionary_learning(tensors, token):
    """Latents f and the reconstruction of one token, `token[m][i]`, as the authors' code computes them."""
    encoder, decoder = tensors["encoder.weight"], tensors["decoder.weight"]
    n_models, width, n_latents = len(encoder), len(encoder[0]), len(encoder[0][0])
    mean, scale = [[0.0] * width] * n_models, [None] * n_models
    if "activation_mean" in tensors and not math.isnan(tensors["activation_mean"][0][0]):
        mean, scale = tensors["activation_mean"], tensors["activation_global_scale"]
        scale = scale if isinstance(scale, list) else [scale] * n_models
    x = [[token[m][i] - mean[m][i] for i in range(width)] for m in range(n_models)]
    x = [x[m] if scale[m] is None else [value * scale[m] for value in x[m]] for m in range(n_models)]
    acts = []
    for j in range(n_latents):
        bias = tensors["encoder.bias"]
        pre = bias[j] if not isinstance(bias[0], list) else sum(row[j] for row in bias)
        for m in range(n_models):
            for i in range(width):
                pre += encoder[m][i][j] * x[m][i]
        f = max(pre, 0.0)
        norm = code_norm(tensors.get("code_normalization_id", 1), [decoder[m][j] for m in range(n_models)])
        if "threshold" in tensors and not f * norm > tensors["threshold"]:
            f = 0.0
        acts.append(f)
    out = [list(row) for row in tensors["decoder.bias"]]
    for m in range(n_models):
        for i in range(width):
            for j in range(n_latents):
                out[m][i] += acts[j] * decoder[m][j][i]
            if scale[m] is not None:
                out[m][i] = out[m][i] / (scale[m] + 1e-8) + mean[m][i]
    return acts, out


def nanda(tensors, token, scales=(1.0, 1.0)):
    """The same for W_enc (model, d, latent), W_dec (latent, model, d), fed with `scales[m] * token[m]`."""
    W_enc, W_dec = tensors["W_enc"], tensors["W_dec"]
    n_models, width = len(W_enc), len(W_enc[0])
    acts = []
    for j in range(len(W_dec)):
        pre = tensors["b_enc"][j]
        for m in range(n_models):
            for i in range(width):
                pre += W_enc[m][i][j] * scales[m] * token[m][i]
        acts.append(max(pre, 0.0))
    out = [list(row) for row in tensors["b_dec"]]
    for m in range(n_models):
        for i in range(width):
            for j, f in enumerate(acts):
                out[m][i] += f * W_dec[j][m][i]
            out[m][i] /= scales[m]
    return acts, out


def norms(layout, tensors, j):
    """Latent j's decoder norms in the file, base first."""
    if layout == "dictionary_learning":
        return [_norm(model[j]) for model in tensors["decoder.weight"]]
    return [_norm(direction) for direction in tensors["W_dec"][j]]
