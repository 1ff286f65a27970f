"""The three tiny transformers: their shape, and their committed weights."""

import warnings
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import load_file, save_file
from transformer_lens import HookedTransformer, HookedTransformerConfig

from sae_lens_crosscoder.models.tiny.dataset import TINY_CONTEXT_SIZE
from sae_lens_crosscoder.models.tiny.tokenizer import tiny_tokenizer
from sae_lens_crosscoder.models.tiny.vocabulary import VOCABULARY

TINY_MODELS: Final = ("tiny-base", "tiny-chat", "tiny-null")
"""The base model; the chat model fine-tuned from it; the base model trained longer on its own corpus."""
TINY_DATASET: Final = "tiny-mix"
"""The name under which configs ask for generated text, in place of a data set on the Hub."""
TINY_HOOK: Final = "blocks.2.hook_resid_post"
"""Where chat-only concepts are most clearly chat-only; `weights/behaviour.json` has the figures per layer."""
WEIGHTS_PATH: Final = Path(__file__).parent / "weights"

D_MODEL: Final = 96
N_LAYERS: Final = 4
N_HEADS: Final = 4


def new_tiny_model(seed: int) -> HookedTransformer:
    """An untrained model of the tiny pair's shape, on the CPU in float32, with the tokenizer attached."""
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
        # Rotary, because rows are packed: what is learned about a document holds wherever in a row it starts.
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
    """Writes the parameters, rounded to bfloat16. Buffers (masks, rotary tables) follow from the shape."""
    save_file({name: p.detach().to(torch.bfloat16) for name, p in model.named_parameters()}, path)


def read_tiny_weights(path: Path) -> HookedTransformer:
    """The model that a weights file holds, in float32: what is stored is all there is of it."""
    model = new_tiny_model(seed=0)
    weights = {name: tensor.to(torch.float32) for name, tensor in load_file(path).items()}
    model.load_state_dict({**model.state_dict(), **weights})
    return model.eval()


def load_tiny_model(name: str, device: str = "cpu", dtype: str = "float32") -> HookedTransformer:
    """One of `TINY_MODELS`, with raw weights (no folding or centring) and the tokenizer attached.

    Args:
        name: `tiny-base`, `tiny-chat` or `tiny-null`.
        device: As in torch, e.g. `cuda`.
        dtype: A torch dtype by name, e.g. `bfloat16`.

    Raises:
        ValueError: There is no such model or dtype.
    """
    if name not in TINY_MODELS:
        raise ValueError(f"There is no built-in model {name!r}: choose one of {', '.join(TINY_MODELS)}.")
    torch_dtype = getattr(torch, dtype, None)
    if not isinstance(torch_dtype, torch.dtype):
        raise ValueError(f"dtype={dtype!r} is not a torch dtype: give its name, such as 'float32' or 'bfloat16'.")
    model = read_tiny_weights(WEIGHTS_PATH / f"{name}.safetensors")
    model.cfg.dtype = torch_dtype
    model.to(torch_dtype, print_details=False)
    model.to(device, print_details=False)
    return model
