"""The tiny transformers: their architecture and their committed weights."""

import warnings
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import load_file, save_file
from transformer_lens import HookedTransformer, HookedTransformerConfig

from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.models.tiny.dataset import TINY_CONTEXT_SIZE
from sae_lens_crosscoder.models.tiny.tokenizer import tiny_tokenizer
from sae_lens_crosscoder.models.tiny.vocabulary import VOCABULARY

TINY_MODELS: Final = ("tiny-base", "tiny-chat", "tiny-null", "tiny-control")
"""The base model; the chat model fine-tuned from it; the base model trained longer on its own corpus; and tuned on the
chat model's requests with other answers."""
TINY_DATASET: Final = "tiny-mix"
"""Name of the generated corpus in configs, in place of a dataset on the Hub."""
TINY_HOOK: Final = "blocks.2.hook_resid_post"
"""The hook at which chat-only concepts are most clearly chat-only; see `weights/behaviour.json`."""
WEIGHTS_PATH: Final = Path(__file__).parent / "weights"

D_MODEL: Final = 96
N_LAYERS: Final = 4
N_HEADS: Final = 4


def new_tiny_model(seed: int) -> HookedTransformer:
    """An untrained model with the tiny pair's architecture, on the CPU in float32, with the tokenizer."""
    config = HookedTransformerConfig(
        model_name="tiny",
        n_layers=N_LAYERS,
        d_model=D_MODEL,
        n_heads=N_HEADS,
        d_head=D_MODEL // N_HEADS,
        d_mlp=4 * D_MODEL,
        n_ctx=TINY_CONTEXT_SIZE,
        d_vocab=len(VOCABULARY),
        act_fn="gelu_new",
        normalization_type="LN",
        # Rotary, because rows are packed: a document should look the same wherever in a row it starts.
        positional_embedding_type="rotary",
        rotary_dim=D_MODEL // N_HEADS,
        seed=seed,
        device="cpu",
    )
    with warnings.catch_warnings():
        # TransformerLens 3 announces the end of HookedTransformer, which SAELens 6 still builds on.
        warnings.simplefilter("ignore", DeprecationWarning)
        return HookedTransformer(config, tokenizer=tiny_tokenizer())


def save_tiny_weights(model: HookedTransformer, path: Path) -> None:
    """Save the parameters, rounded to bfloat16; buffers (masks, rotary tables) follow from the architecture."""
    save_file({name: p.detach().to(torch.bfloat16) for name, p in model.named_parameters()}, path)


def load_tiny_weights(path: Path) -> HookedTransformer:
    """Load a model from a weights file, in float32."""
    model = new_tiny_model(seed=0)
    weights = {name: tensor.to(torch.float32) for name, tensor in load_file(path).items()}
    model.load_state_dict({**model.state_dict(), **weights})
    return model.eval()


@validate_arguments
def load_tiny_model(name: str, device: str = "cpu", dtype: str = "float32") -> HookedTransformer:
    """Load one of `TINY_MODELS`, with raw weights (no folding or centring) and the tokenizer.

    Args:
        name: one of `TINY_MODELS`.
        device: a torch device, such as `cuda`.
        dtype: the name of a torch dtype, such as `bfloat16`.

    Raises:
        ValueError: for an unknown model or dtype.
    """
    if name not in TINY_MODELS:
        raise ValueError(f"Unknown built-in model {name!r}. Use one of {', '.join(TINY_MODELS)}.")
    torch_dtype = getattr(torch, dtype, None)
    if not isinstance(torch_dtype, torch.dtype):
        raise ValueError(f"dtype={dtype!r} is not a torch dtype. Use its name, such as 'float32' or 'bfloat16'.")
    model = load_tiny_weights(WEIGHTS_PATH / f"{name}.safetensors")
    model.cfg.dtype = torch_dtype
    model.to(torch_dtype, print_details=False)
    model.to(device, print_details=False)
    return model
