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


def decoupled(tensors, token):
    """Latents per model and the reconstruction of a decoupled BatchTopK crosscoder: one gate per model."""
    encoder, decoder = tensors["encoder.weight"], tensors["decoder.weight"]
    n_models, width, n_latents = len(encoder), len(encoder[0]), len(encoder[0][0])
    acts = [[0.0] * n_latents for _ in range(n_models)]
    for j in range(n_latents):
        pre = tensors["encoder.bias"][j]
        pre += sum(encoder[m][i][j] * token[m][i] for m in range(n_models) for i in range(width))
        for m in range(n_models):
            f = max(pre, 0.0)
            acts[m][j] = f if f * _norm(decoder[m][j]) > tensors["threshold"][m] else 0.0
    out = [list(row) for row in tensors["decoder.bias"]]
    for m in range(n_models):
        for i in range(width):
            out[m][i] += sum(acts[m][j] * decoder[m][j][i] for j in range(n_latents))
    return acts, out


def crosscode(tensors, token):
    """Latents and reconstruction for W_enc (model, hook, d, latent), `token[m][p][i]`; ReLU or JumpReLU."""
    W_enc, W_dec = tensors["W_enc"], tensors["W_dec"]
    places = [(m, p) for m in range(len(W_enc)) for p in range(len(W_enc[0]))]
    acts = []
    for j in range(len(W_dec)):
        pre = tensors["b_enc"][j]
        for m, p in places:
            pre += sum(W_enc[m][p][i][j] * x for i, x in enumerate(token[m][p]))
        theta = math.exp(tensors["log_threshold"][j]) if "log_threshold" in tensors else 0.0
        acts.append(pre if pre > theta else 0.0)
    out = [[list(hook) for hook in model] for model in tensors["b_dec"]]
    for m, p in places:
        for i in range(len(out[m][p])):
            out[m][p][i] += sum(f * W_dec[j][m][p][i] for j, f in enumerate(acts))
    return acts, out


def dedicated_features(tensors, token, theta=None, k=None):
    """Latents and reconstruction of a dedicated-feature crosscoder, `token` in the file's order of models.

    The k largest latents of the token are on, as in its own code; with theta, those above it.
    """
    W_enc, W_dec = tensors["W_enc"], tensors["W_dec"]
    n_latents, width = len(W_dec), len(W_enc[0])
    acts = []
    for j in range(n_latents):
        pre = tensors["b_enc"][j]
        for m in range(2):
            pre += sum(W_enc[m][i][j] * tensors["enc_mask"][m][j] * token[m][i] for i in range(width))
        acts.append(max(pre, 0.0))
    if k is not None:
        kept = sorted(range(n_latents), key=lambda j: -acts[j])[:k]
        acts = [f if j in kept else 0.0 for j, f in enumerate(acts)]
    else:
        acts = [f if f > theta else 0.0 for f in acts]
    out = [list(row) for row in tensors["b_dec"]]
    for m in range(2):
        for i in range(width):
            out[m][i] += sum(f * W_dec[j][m][i] * tensors["dec_mask"][j][m] for j, f in enumerate(acts))
    return acts, out


def gemma_scope_2(parts, token):
    """Latents, those of the first file first, and the reconstruction `[layer][i]`; `parts[n]` is a file's tensors."""
    n_layers = len(parts)
    acts, out = [], [list(part["b_dec"]) for part in parts]
    for n, part in enumerate(parts):
        for j in range(len(part["b_enc"])):
            pre = part["b_enc"][j] + sum(part["w_enc"][i][j] * x for i, x in enumerate(token[n]))
            f = max(pre, 0.0) if pre > part["threshold"][j] else 0.0
            acts.append(f)
            for layer in range(n_layers):
                for i in range(len(out[layer])):
                    out[layer][i] += f * part["w_dec"][j][layer][i]
    return acts, out


def llamascopium(tensors, token, scales, act_fn):
    """Latents per head and the reconstruction `[head][i]`, fed with `scales[h] * token[h]`."""
    W_E, W_D = tensors["W_E"], tensors["W_D"]
    n_heads, width, n_latents = len(W_E), len(W_E[0]), len(W_E[0][0])
    acts = [[0.0] * n_latents for _ in range(n_heads)]
    for j in range(n_latents):
        pre = 0.0
        for h in range(n_heads):
            pre += tensors["b_E"][h][j]
            pre += sum(W_E[h][i][j] * scales[h] * token[h][i] for i in range(width))
        for h in range(n_heads):
            gated = pre * _norm(W_D[h][j])
            theta = math.exp(tensors["log_threshold"][j]) if act_fn == "jumprelu" else 0.0
            acts[h][j] = pre if gated > theta else 0.0
    out = [list(row) for row in tensors["b_D"]]
    for h in range(n_heads):
        for i in range(width):
            out[h][i] = (out[h][i] + sum(acts[h][j] * W_D[h][j][i] for j in range(n_latents))) / scales[h]
    return acts, out


def norm(vector):
    """Euclidean length."""
    return _norm(vector)
