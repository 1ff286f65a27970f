"""Small random language models, built in code or saved to a folder: no download anywhere."""

from pathlib import Path
from typing import Any

import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sae_lens_crosscoder.models.tiny import tiny_tokenizer

N_LAYERS, D_MODEL = 3, 32
_SHAPE: dict[str, Any] = dict(
    hidden_size=D_MODEL,
    intermediate_size=64,
    num_hidden_layers=N_LAYERS,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=64,
)


def some_tokens(n_prompts: int = 2, n_pos: int = 12, d_vocab: int = 50, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, d_vocab, (n_prompts, n_pos), generator=torch.Generator().manual_seed(seed))


def random_hooked_transformer(d_model: int, seed: int, d_vocab: int = 50, n_layers: int = 2) -> HookedTransformer:
    """Without a tokenizer."""
    config = HookedTransformerConfig(
        n_layers=n_layers,
        d_model=d_model,
        n_heads=2,
        d_head=8,
        d_mlp=32,
        n_ctx=32,
        d_vocab=d_vocab,
        act_fn="relu",
        seed=seed,
    )
    return HookedTransformer(config).eval()


def gemma2(seed: int = 0, noise: float = 0.0) -> Gemma2ForCausalLM:
    """The Gemma 2 architecture; with `noise`, the same weights perturbed, as a fine-tuned model's are."""
    tokenizer = tiny_tokenizer()
    config = Gemma2Config(
        **_SHAPE,
        vocab_size=len(tokenizer),
        query_pre_attn_scalar=8,
        sliding_window=8,  # shorter than the contexts of the tests, so that it matters
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation="eager",
    )
    return perturbed(Gemma2ForCausalLM, config, seed, noise)


def llama(seed: int = 0, noise: float = 0.0) -> LlamaForCausalLM:
    config = LlamaConfig(**_SHAPE, vocab_size=len(tiny_tokenizer()), attn_implementation="eager")
    return perturbed(LlamaForCausalLM, config, seed, noise)


def perturbed(model_class: Any, config: Any, seed: int, noise: float) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = model_class(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(noise * torch.randn_like(parameter))
    return model


def save_pair(folder: Path, architecture: Any) -> tuple[str, str]:
    """Folders of a base model and a perturbed copy of it, each with the tiny pair's tokenizer."""
    folders = (folder / "base", folder / "chat")
    for path, noise in zip(folders, (0.0, 0.02), strict=True):
        architecture(noise=noise).save_pretrained(path)
        tokenizer: PreTrainedTokenizerFast = tiny_tokenizer()
        tokenizer.save_pretrained(path)
    return str(folders[0]), str(folders[1])
