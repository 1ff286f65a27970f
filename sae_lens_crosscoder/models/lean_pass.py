"""Reading one activation of a HookedTransformer with few temporaries: the values are those of its own pass, bit by bit.

TransformerLens keeps every intermediate for hooks, normalises a block's input three times, and visits all hook points
before and after a pass. On a small model that costs more than the matrix products.
"""

import re
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import HookedTransformer
from transformer_lens.components.attention import Attention
from transformer_lens.components.layer_norm import LayerNorm
from transformer_lens.components.mlps.mlp import MLP
from transformer_lens.components.rms_norm import RMSNorm
from transformer_lens.utilities.activation_functions import apply_softcap, gelu_new
from transformer_lens.utilities.addmm import batch_addmm
from transformer_lens.utilities.architectures import POST_NORM_ARCHITECTURES

from sae_lens_crosscoder.models.hook_access import stop_after
from sae_lens_crosscoder.models.lower_layers import LowerPass, shared_blocks
from sae_lens_crosscoder.models.unwrapped_pass import called_block, can_read_unwrapped, run_unwrapped
from sae_lens_crosscoder.stacking import hook_of_model, split_hooks

_RESIDUAL_HOOK = re.compile(r"blocks\.\d+\.hook_(resid_pre|resid_mid|resid_post|attn_out|mlp_out)")
_ARGUMENTS = {"stop_at_layer", "prepend_bos"}
_OTHER_BLOCKS = ("attn_only", "parallel_attn_mlp", "use_attn_in", "use_split_qkv_input", "use_hook_mlp_in")
_OTHER_ATTENTION = ("use_attn_result", "load_in_4bit", "use_attention_sinks", "use_logn_attn", "use_dynamic_ntk_rope")
_CHUNK = 2**17  # elements of an activation function's input whose temporaries stay in a core's cache


def can_read_lean(model: Any, hook_name: str, arguments: Mapping[str, Any]) -> bool:
    """True if `lean_activation` can read the hook: a plain HookedTransformer without hooks and without gradients."""
    if type(model) is not HookedTransformer or not all(map(_RESIDUAL_HOOK.fullmatch, split_hooks(hook_name))):
        return False
    if torch.is_grad_enabled() or torch.is_autocast_enabled(model.W_E.device.type) or not set(arguments) <= _ARGUMENTS:
        return False
    cfg = model.cfg
    if any(getattr(cfg, name) for name in _OTHER_BLOCKS) or cfg.positional_embedding_type not in ("standard", "rotary"):
        return False
    if cfg.original_architecture in POST_NORM_ARCHITECTURES or cfg.n_devices > 1:
        return False
    return not any(point._forward_hooks or point._forward_pre_hooks for point in model.hook_dict.values())  # pyright: ignore[reportPrivateUsage]


def lean_activations(
    models: Iterable[Any], tokens: Int[Tensor, "batch pos"], hook_name: str, arguments: Mapping[str, Any]
) -> list[Float[Tensor, "batch pos _"]] | None:
    """Each model's activation at its hook; None unless `can_read_lean` or `can_read_unwrapped` allows it for each.

    Lower layers of equal weights run once.

    Args:
        arguments: of every pass, without `stop_at_layer`, which follows from the hook.
    """
    members = list(models)
    hooks = [hook_of_model(hook_name, m) for m in range(len(members))]
    options = [{"stop_at_layer": stop_after(hook), **arguments} for hook in hooks]
    runs = list(map(_lean_run, members, hooks, options))
    if None in runs:
        return None
    lower = LowerPass([list(map(called_block, blocks)) for blocks in shared_blocks(members)])
    read: list[Tensor] = []
    for m, (model, hook, run) in enumerate(zip(members, hooks, runs, strict=True)):
        assert run is not None
        names = split_hooks(hook)
        _, cache = lower.run(m, run, tokens.to(model.W_E.device), names_filter=names, **options[m])
        read.append(_joined(cache, names))
    return read


def _lean_run(model: Any, hook_name: str, arguments: Mapping[str, Any]) -> Callable[..., Any] | None:
    """A `run_with_cache` with few temporaries; None for a model that has none."""
    if can_read_lean(model, hook_name, arguments):
        return partial(_run_with_cache, model)
    return partial(run_unwrapped, model) if can_read_unwrapped(model, hook_name, arguments) else None


def lean_activation(
    model: Any, tokens: Int[Tensor, "batch pos"], hook_name: str, arguments: Mapping[str, Any]
) -> Float[Tensor, "batch pos _"]:
    """The activation at a hook of the residual stream, or at joined ones, from a pass that `can_read_lean` allows."""
    names = split_hooks(hook_name)
    return _joined(_run_with_cache(model, tokens, names, **arguments)[1], names)


def _joined(cache: Mapping[str, Tensor], names: Sequence[str]) -> Float[Tensor, "batch pos _"]:
    return cache[names[0]] if len(names) == 1 else torch.cat([cache[name] for name in names], dim=-1)


def _run_with_cache(
    model: Any, tokens: Tensor, names_filter: Sequence[str], **arguments: Any
) -> tuple[None, dict[str, Tensor]]:
    read: dict[str, Tensor] = {}

    def keep(name: str, point: Any, args: Any, output: Tensor) -> None:
        read[name] = output

    handles = [model.hook_dict[name].register_forward_hook(partial(keep, name)) for name in names_filter]
    try:
        with _lean_blocks(model):
            model(tokens, return_type=None, **arguments)
    finally:
        for handle in handles:
            handle.remove()
    return None, read


@contextmanager
def _lean_blocks(model: Any) -> Generator[None]:
    blocks = [block for block in model.blocks if "forward" not in vars(block)]  # others take over a recorded output
    try:
        for block in blocks:
            vars(block)["forward"] = partial(_block, block)
        yield
    finally:
        for block in blocks:
            vars(block).pop("forward", None)


def _block(block: Any, resid_pre: Float[Tensor, "batch pos d_model"], **_: Any) -> Float[Tensor, "batch pos d_model"]:
    """TransformerLens's block; its other arguments are None in a pass that `can_read_lean` allows."""
    both = block.cfg.use_normalization_before_and_after
    resid_pre = block.hook_resid_pre(resid_pre)
    attn_out = _attention(block.attn, _norm(block.ln1, resid_pre))
    attn_out = block.hook_attn_out(_norm(block.ln1_post, attn_out) if both else attn_out)
    resid_mid = block.hook_resid_mid(resid_pre + attn_out)
    mlp_out = _mlp(block.mlp, _norm(block.ln2, resid_mid))
    mlp_out = block.hook_mlp_out(_norm(block.ln2_post, mlp_out) if both else mlp_out)
    return block.hook_resid_post(resid_mid + mlp_out)


def _norm(norm: Any, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
    if type(norm) not in (LayerNorm, RMSNorm) or not norm.w.dtype == norm.cfg.dtype == x.dtype == torch.float32:
        return norm(x)
    if type(norm) is RMSNorm:
        return (x / x.pow(2).mean(-1, keepdim=True).add_(norm.eps).sqrt_()).mul_(norm.w)
    x = x - x.mean(-1, keepdim=True)
    return x.div_(x.pow(2).mean(-1, keepdim=True).add_(norm.eps).sqrt_()).mul_(norm.w).add_(norm.b)


def _mlp(mlp: Any, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
    if type(mlp) is not MLP or mlp.act_fn is not gelu_new:
        return mlp(x)
    hidden = batch_addmm(mlp.b_in, mlp.W_in, x)
    rows = hidden.view(-1, hidden.shape[-1])
    for chunk in rows.split(max(1, _CHUNK // rows.shape[1])):
        _gelu_new_in_place(chunk)
    return batch_addmm(mlp.b_out, mlp.W_out, hidden)


def _gelu_new_in_place(x: Float[Tensor, "..."]) -> None:
    """TransformerLens's `gelu_new`, its operations in the same order."""
    factor = torch.pow(x, 3.0).mul_(0.044715).add_(x).mul_((2.0 / torch.pi) ** 0.5).tanh_().add_(1.0)
    x.mul_(0.5).mul_(factor)


def _attention(attn: Any, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
    if not _is_plain(attn, x):
        return attn(query_input=x, key_input=x, value_input=x)
    q, k, v = attn.calculate_qkv_matrices(x, x, x)
    if attn.cfg.positional_embedding_type == "rotary":
        q, k = _rotated(attn, q), _rotated(attn, k)
    n_pos = x.shape[1]
    scores = q.transpose(1, 2) @ k.permute(0, 2, 3, 1)
    scores = apply_softcap(scores.div_(attn.attn_scale), attn.cfg.attn_scores_soft_cap)
    future = ~attn._make_causal_mask(n_pos, n_pos, 0, x.device)
    pattern = F.softmax(scores.masked_fill_(future, -torch.inf), dim=-1).nan_to_num_(0.0)
    z = rearrange(pattern @ v.transpose(1, 2), "batch head pos d_head -> batch pos (head d_head)")
    return F.linear(z, rearrange(attn.W_O, "head d_head d_model -> d_model (head d_head)").contiguous(), attn.b_O)


def _is_plain(attn: Any, x: Tensor) -> bool:
    """True for multi-head attention with a causal mask, and without the options of other architectures."""
    cfg = attn.cfg
    if type(attn) is not Attention or (getattr(attn, "_attention_dir_override") or cfg.attention_dir) != "causal":  # noqa: B009
        return False
    if any(getattr(cfg, name) for name in _OTHER_ATTENTION) or cfg.clip_qkv is not None or x.device.type == "mps":
        return False
    if cfg.positional_embedding_type == "rotary" and not (
        attn.rotary_cos.dtype == x.dtype and attn.rotary_cos.device == x.device and len(attn.rotary_cos) >= x.shape[1]
    ):
        return False
    return not str(cfg.original_architecture).startswith("Olmo") and attn.W_O.dtype == x.dtype


def _rotated(attn: Any, x: Float[Tensor, "batch pos head d_head"]) -> Float[Tensor, "batch pos head d_head"]:
    """Rotary embedding: each pair (a, b) becomes (a cos - b sin, b cos + a sin)."""
    n = attn.cfg.rotary_dim
    cos, sin = (table[None, : x.shape[1], None, :] for table in (attn.rotary_cos, attn.rotary_sin))
    if attn.cfg.rotary_adjacent_pairs:
        first, second = slice(0, n, 2), slice(1, n, 2)
    else:
        first, second = slice(0, n // 2), slice(n // 2, n)
    rotated = x[..., :n] * cos
    rotated[..., first].sub_(x[..., second] * sin[..., first])
    rotated[..., second].add_(x[..., first] * sin[..., second])
    return rotated if n == x.shape[-1] else torch.cat([rotated, x[..., n:]], dim=-1)
