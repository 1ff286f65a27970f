"""Results of other people's code, by the loop-written reference, in this package's order of models and latents.

Every function takes a layout and the tokens, nested lists `[token][source][i]`, and returns scores, reconstructions
and, of a pair, 1 - dec_norm_diff.
"""

import math

from tests.reference import foreign_layouts as ref

ALIASES = {
    "_W_enc_XiDiL": "W_enc",
    "_W_dec_LXoDo": "W_dec",
    "b_enc_L": "b_enc",
    "_b_dec_XoDo": "b_dec",
    "_activation_fn.log_threshold_L": "log_threshold",
}


def results(tokens, forward, norms):
    """`forward(token)` gives latents and the reconstruction; `norms` are those of every latent's decoders."""
    scores, outs = [], []
    for token in tokens:
        acts, out = forward(token)
        scores.append([f * sum(norm) for f, norm in zip(acts, norms, strict=True)])
        outs.append(out)
    return scores, outs, [1 - ref.dec_norm_diff(*norm) for norm in norms] if len(norms[0]) == 2 else []


def dictionary_learning(layout, tokens):
    lists = layout.lists()
    norms = [ref.norms("dictionary_learning", lists, j) for j in range(len(lists["decoder.weight"][0]))]
    return results(tokens, lambda token: ref.dictionary_learning(lists, token), norms)


def decoupled(layout, tokens):
    lists = layout.lists()
    decoder = lists["decoder.weight"]
    latents = [(m, j) for m in (0, 1) for j in range(len(decoder[0]))]
    norms = [[ref.norm(decoder[m][j]) if n == m else 0.0 for n in range(2)] for m, j in latents]

    def forward(token):
        acts, out = ref.decoupled(lists, token)
        return acts[0] + acts[1], out

    return results(tokens, forward, norms)


def kissane(layout, tokens):
    lists = layout.lists()
    norms = [ref.norms("kissane", lists, j) for j in range(len(lists["W_dec"]))]
    return results(tokens, lambda token: ref.nanda(lists, token, layout.scales), norms)


def crosscode(layout, tokens):
    """Without an axis of hooks, one is added."""
    lists = {ALIASES.get(name, name): values for name, values in layout.lists().items()}
    if not isinstance(lists["W_enc"][0][0][0], list):
        lists["W_enc"] = [[model] for model in lists["W_enc"]]
        lists["W_dec"] = [[[direction] for direction in latent] for latent in lists["W_dec"]]
        lists["b_dec"] = [[bias] for bias in lists["b_dec"]]
    n_models, n_hooks = len(lists["W_enc"]), len(lists["W_enc"][0])
    flat = [[direction for model in latent for direction in model] for latent in lists["W_dec"]]
    norms = trained = [[ref.norm(direction) for direction in latent] for latent in flat]
    if lists.get("is_folded") is True or lists.get("is_folded") == 1:
        scales = [scale for model in lists["folded_scaling_factors_in_Xi"] for scale in model]
        trained = [[norm * scale for norm, scale in zip(latent, scales, strict=True)] for latent in norms]

    def forward(token):
        nested = [[token[m * n_hooks + p] for p in range(n_hooks)] for m in range(n_models)]
        acts, out = ref.crosscode(lists, nested)
        return acts, [hook for model in out for hook in model]

    return results(tokens, forward, trained)


def dedicated_features(layout, tokens):
    lists = layout.lists()
    n_a = sum(mask == 0 for mask in lists["enc_mask"][1])
    n_b = sum(mask == 0 for mask in lists["enc_mask"][0])
    ids = base_first(n_a, n_b, len(lists["W_dec"]))
    masked = [
        [[value * mask for value in direction] for direction, mask in zip(latent, masks, strict=True)]
        for latent, masks in zip(lists["W_dec"], lists["dec_mask"], strict=True)
    ]
    norms = [[ref.norm(direction) for direction in masked[j][::-1]] for j in ids]

    def forward(token):
        acts, out = ref.dedicated_features(lists, token[::-1], theta=layout.options["theta"])
        return [acts[j] for j in ids], out[::-1]

    return results(tokens, forward, norms)


def dedicated_batchtopk(layout, tokens):
    lists = layout.lists()
    shares = lists["_partition_config"]
    d_sae = len(lists["decoder.weight"][0])
    n_a, n_b = (int(d_sae * shares[f"model_{name}_exclusive_pct"]) for name in "ab")
    ids = base_first(n_a, n_b, d_sae)
    norms = [ref.norms("dictionary_learning", lists, j)[::-1] for j in ids]

    def forward(token):
        acts, out = ref.dictionary_learning(lists, token[::-1])
        return [acts[j] for j in ids], out[::-1]

    return results(tokens, forward, norms)


def base_first(n_a, n_b, d_sae):
    """Ids in the file, base's own latents first, then those of the tuned model."""
    return [*range(n_a, n_a + n_b), *range(n_a), *range(n_a + n_b, d_sae)]


def gemma_scope_2(layout, tokens):
    parts = {}
    for name, values in layout.lists().items():
        part, _, rest = name.partition(".")
        parts.setdefault(part, {})[rest] = values
    parts = [parts[f"params_layer_{n}"] for n in range(len(parts))]
    norms = [[ref.norm(direction) for direction in latent] for part in parts for latent in part["w_dec"]]
    return results(tokens, lambda token: ref.gemma_scope_2(parts, token), norms)


def llamascopium(layout, tokens, act_fn="relu"):
    lists = layout.lists()
    if act_fn == "jumprelu":
        lists["log_threshold"] = lists["activation_function.log_jumprelu_threshold"]
    scales = [1.0] * len(lists["W_D"])
    if layout.settings["config.json"]["norm_activation"] == "dataset-wise":
        hooks = layout.settings["config.json"]["hook_points"]
        width = len(lists["W_E"][0])
        scales = [math.sqrt(width) / lists[f"dataset_average_activation_norm.{hook}"] for hook in hooks]
    n_heads, n_latents = len(lists["W_D"]), len(lists["W_D"][0])
    of_heads = [[ref.norm(lists["W_D"][h][j]) for h in range(n_heads)] for j in range(n_latents)]
    latents = [(h, j) for h in range(n_heads) for j in range(n_latents)]
    norms = [[of_heads[j][h] if n == h else 0.0 for n in range(n_heads)] for h, j in latents]

    def forward(token):
        acts, out = ref.llamascopium(lists, token, scales, act_fn)
        return [f for head in acts for f in head] if act_fn == "jumprelu" else acts[0], out

    return results(tokens, forward, norms if act_fn == "jumprelu" else of_heads)


EXPECTATIONS = {
    "dictionary_learning": dictionary_learning,
    "decoupled": decoupled,
    "kissane": kissane,
    "crosscode": crosscode,
    "dedicated_features": dedicated_features,
    "dedicated_batchtopk": dedicated_batchtopk,
    "gemma_scope_2": gemma_scope_2,
    "llamascopium": llamascopium,
    "llamascopium_jumprelu": lambda layout, tokens: llamascopium(layout, tokens, "jumprelu"),
}
