"""Patches on plain TransformerLens hooks: each model alone, its activation read, edited and written back."""

import torch


def added(h, crosscoder, latents, how, models, coefficient=1.0, max_activation=None, with_bias=False):
    """What an intervention adds to the activations h[m] (batch, pos, d) of the models 0 and 1."""
    cut = h[0].shape[-1]
    W_enc, W_dec, b = crosscoder["W_enc"], crosscoder["W_dec"], crosscoder["b_dec"]
    decoders, biases = (W_dec[latents, :cut], W_dec[latents, cut:]), (b[:cut], b[cut:])
    pre = torch.cat(h, dim=-1) @ W_enc + crosscoder["b_enc"]
    f = torch.where(pre > crosscoder["threshold"].clamp(min=0), pre, 0)[..., latents]
    result = [torch.zeros_like(part) for part in h]
    for m in models:
        own, other = f @ decoders[m], f @ decoders[1 - m] if how in ("replace", "add") else None
        if how == "replace":
            result[m] = coefficient * (other - own + with_bias * (biases[1 - m] - biases[m]))
        elif how == "add":
            result[m] = coefficient * other
        elif how == "ablate":
            result[m] = -coefficient * (own + with_bias * biases[m])
        elif how == "scale":
            result[m] = (coefficient - 1) * own
        elif how == "steer":
            result[m] = (coefficient * max_activation @ decoders[m]).expand_as(h[m])
        else:
            result[m] = coefficient * (own + biases[m] - h[m])
    return result


def edited(h, patches):
    """Both models' activations h[m] (batch, pos, d) under patches, dicts of `added`'s arguments, `positions` and
    `read_by`, in order."""
    new = list(h)
    for patch in patches:
        rest = {name: value for name, value in patch.items() if name not in ("positions", "read_by")}
        mask = torch.ones(h[0].shape[:2], dtype=torch.bool) if patch.get("positions") is None else patch["positions"]
        mask = torch.cat([mask, mask.new_zeros(len(mask), h[0].shape[1] - mask.shape[1])], dim=1)[..., None]
        new = [part + mask * delta for part, delta in zip(new, added(h, **rest), strict=True)]
        if patch.get("read_by") == "chat":
            new[1] = new[0]
    return new


def logits(models, tokens, hook_name, cases):
    """Logits (batch, pos, model, vocab) of both models for every case: tokens[case] under the patches cases[case].

    Each model reads all cases in one batch, and writes them in one.
    """
    batch = torch.cat(tokens)
    h = [model.run_with_cache(batch, names_filter=[hook_name])[1][hook_name] for model in models]
    of_cases = zip(*(part.split([len(each) for each in tokens]) for part in h), strict=True)
    new = [edited(of_case, patches) for of_case, patches in zip(of_cases, cases, strict=True)]
    outputs = []
    for m, model in enumerate(models):
        value = torch.cat([of_case[m] for of_case in new])
        hooks = [(hook_name, lambda activation, hook, value=value: value)]
        outputs.append(model.run_with_hooks(batch, return_type="logits", fwd_hooks=hooks))
    return torch.stack(outputs, dim=2).split([len(each) for each in tokens])


def written(models, tokens, hook_name, cases, writers, n):
    """Greedy tokens (batch, n) of one model, writers[case], for every case, every one from full passes of both."""
    for _ in range(n):
        following = logits(models, tokens, hook_name, cases)
        greedy = [each[:, -1, m].argmax(dim=-1) for each, m in zip(following, writers, strict=True)]
        tokens = [torch.cat([each, token[:, None]], dim=1) for each, token in zip(tokens, greedy, strict=True)]
    return [each[:, -n:] for each in tokens]
