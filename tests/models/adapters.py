"""Random LoRA adapters on the upper half of a small random model, and the same change merged into a second copy."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

from sae_lens_crosscoder.models.tiny import tiny_tokenizer
from tests.models.small_models import perturbed

N_LAYERS, FIRST_ADAPTED = 4, 2
_SHAPE: dict[str, Any] = dict(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=N_LAYERS,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=64,
    attn_implementation="eager",
)
TARGETS = ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]


def save_base(folder: Path, architecture: str = "llama", seed: int = 0, **shape: Any) -> str:
    """A folder with a small random model and the tiny pair's tokenizer, whose ids are the vocabulary."""
    tokenizer = tiny_tokenizer()
    special = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
    classes: dict[str, tuple[Any, Any]] = {
        "llama": (LlamaForCausalLM, LlamaConfig),
        "gemma2": (Gemma2ForCausalLM, Gemma2Config),
    }
    model_class, config_class = classes[architecture]
    config = config_class(**{**_SHAPE, "vocab_size": len(tokenizer), **special, **shape})
    perturbed(model_class, config, seed, noise=0.05).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def save_adapter(folder: Path, base: str, seed: int = 1, **options: Any) -> str:
    """A folder with a random LoRA adapter, by default on the upper half of the layers."""
    settings: dict[str, Any] = dict(r=4, target_modules=TARGETS, layers_to_transform=[2, 3], task_type="CAUSAL_LM")
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        adapted = get_peft_model(model, LoraConfig(**{**settings, **options}))
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_" in name:
                    parameter.normal_(std=0.3)
    adapted.save_pretrained(str(folder))
    return str(folder)


def save_merged(folder: Path, base: str, adapter: str) -> str:
    """A folder with the adapter merged into a copy of its base."""
    merged: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    merged.merge_and_unload().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)
