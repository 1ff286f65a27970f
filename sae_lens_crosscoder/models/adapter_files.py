"""LoRA adapters by name: splitting names, reading their files, and refusing adapters that cannot be switched off."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

# NAME+adapter=FOLDER_OR_HUB_ID is NAME with an adapter on its layers.
_ADAPTER = "+adapter="
_LORA_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
# Starts that leave the base model's weights as they are; the others (PiSSA, OLoRA, LoftQ ...) move part of them.
_PLAIN_STARTS = (True, False, "gaussian", "orthogonal", "eva")
_MERGE = "Merge it into a copy of its base (peft's merge_and_unload) and load that folder"


@dataclass(frozen=True)
class LoraAdapter:
    """An adapter's files, read and checked."""

    source: str
    config: Any
    """peft's own config."""
    weights: dict[str, Tensor]

    @property
    def modules(self) -> dict[str, dict[str, Tensor]]:
        """The matrices A and B by name of the base model's module."""
        modules: dict[str, dict[str, Tensor]] = {}
        for key, weight in self.weights.items():
            match = _LORA_KEY.fullmatch(key)
            if match is None:
                raise ValueError(f"Adapter {self.source!r} has weights that are not LoRA's: {key!r}. {_MERGE}.")
            modules.setdefault(match["module"], {})[match["side"]] = weight
        return modules


def split_adapter(name: str) -> tuple[str, str | None]:
    """Split a model's name into the name of its base and its adapter, None without one.

    >>> split_adapter("my-base+adapter=my-adapter"), split_adapter("my-base")
    (('my-base', 'my-adapter'), ('my-base', None))
    """
    base, marker, adapter = name.partition(_ADAPTER)
    if not marker:
        return name, None
    if not base or not adapter:
        raise ValueError(f"{name!r} names no base or no adapter. Write it as 'my-base+adapter=folder-or-hub-id'.")
    if "+jitter=" in name:
        raise ValueError(
            f"{name!r} has both an adapter and jitter. Jitter would change the weights that both models share: merge "
            "the adapter into a copy of its base, and add the jitter to that."
        )
    return base, adapter


def share_weights(names: Sequence[str], devices: Sequence[str]) -> bool:
    """True for models of one base on one device, of which at least one has an adapter.

    >>> share_weights(["my-base", "my-base+adapter=my-adapter"], ["cpu", "cpu"])
    True
    """
    sources = [split_adapter(name) for name in names]
    has_adapter = any(adapter is not None for _, adapter in sources)
    return has_adapter and len({base for base, _ in sources}) == 1 and len(set(devices)) == 1


def load_lora_adapter(source: str) -> LoraAdapter:
    """Load an adapter's files from a folder or the Hub.

    Raises:
        ImportError: without peft.
        ValueError: for an adapter that is not plain LoRA on inner layers; the message names the reason.
    """
    try:
        from peft import PeftConfig
        from peft.utils import load_peft_weights
    except ImportError as error:
        raise ImportError("Adapters need peft: pip install 'sae-lens-crosscoder[adapters]'.") from error
    config: Any = PeftConfig.from_pretrained(source)
    _validate_config(source, config)
    return LoraAdapter(source, config, load_peft_weights(source, device="cpu"))


def loaded_lora_adapter(model: Any) -> LoraAdapter:
    """The active adapter of a loaded `PeftModel`.

    Raises:
        ValueError: for several active or merged adapters, or one that is not plain LoRA on inner layers.
    """
    from peft import get_peft_model_state_dict
    from peft.tuners.tuners_utils import BaseTunerLayer

    active = list(getattr(model, "active_adapters", ()) or ())
    if len(active) != 1:
        raise ValueError(f"The PeftModel has the active adapters {active}, expected one. Call set_adapter(name).")
    if any(layer.merged for layer in model.modules() if isinstance(layer, BaseTunerLayer)):
        raise ValueError("The PeftModel's adapter is merged into its base. Call unmerge_adapter() before pairing it.")
    config = model.peft_config[active[0]]
    _validate_config(active[0], config)
    weights = get_peft_model_state_dict(model, adapter_name=active[0], save_embedding_layers=False)
    adapter = LoraAdapter(active[0], config, weights)
    _validate_inner(adapter, model.get_base_model())
    return adapter


def _validate_config(source: str, config: Any) -> None:
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    if kind != "LORA":
        raise ValueError(f"Adapter {source!r} has peft_type={kind!r}, expected 'LORA'. {_MERGE}, if peft can merge it.")
    refused = {
        "modules_to_save": "it replaces whole modules, which would be a second copy",
        "use_dora": "DoRA rescales the base model's own weights",
        "trainable_token_indices": "it changes the embedding, which both models share",
        "layer_replication": "it changes the base model's layers",
        "target_parameters": "it adapts parameters outside of linear layers",
        "alora_invocation_tokens": "it is on for part of the tokens only",
    }
    for field, reason in refused.items():
        if getattr(config, field, None):
            raise ValueError(f"Adapter {source!r} sets {field}={getattr(config, field)!r}: {reason}. {_MERGE}.")
    if getattr(config, "bias", "none") != "none" or getattr(config, "lora_bias", False):
        raise ValueError(f"Adapter {source!r} trains biases, which stay on when it is switched off. {_MERGE}.")
    if config.init_lora_weights not in _PLAIN_STARTS:
        raise ValueError(
            f"Adapter {source!r} has init_lora_weights={config.init_lora_weights!r}, which changes the base model's "
            f"weights. Convert it with peft's path_initial_model_for_weight_conversion, or merge it. {_MERGE}."
        )


def validate_fits(adapter: LoraAdapter, base_name: str, model: Any) -> None:
    """Raise a ValueError unless the adapter's matrices fit linear layers of the model, embeddings excluded."""
    present = dict(model.named_modules())
    _validate_inner(adapter, model)
    for name, sides in adapter.modules.items():
        module = present.get(name)
        if module is None:
            raise ValueError(
                f"Adapter {adapter.source!r} adapts {name!r}, which {base_name!r} does not have: it was trained on "
                f"another model, {adapter.config.base_model_name_or_path!r}. Load it on that one."
            )
        expected = _widths(module)
        if expected is None or set(sides) != {"A", "B"}:
            raise ValueError(f"Adapter {adapter.source!r} adapts {name!r}, which is not a linear layer. {_MERGE}.")
        widths = (sides["A"].shape[1], sides["B"].shape[0])
        if widths != expected:
            raise ValueError(
                f"Adapter {adapter.source!r} maps {widths[0]} to {widths[1]} features at {name!r}, but {base_name!r} "
                f"maps {expected[0]} to {expected[1]} there: it was trained on another model, "
                f"{adapter.config.base_model_name_or_path!r}. Load it on that one."
            )


def _validate_inner(adapter: LoraAdapter, model: Any) -> None:
    """Raise a ValueError for an adapter of the embedding or unembedding."""
    embeddings = (model.get_input_embeddings(), model.get_output_embeddings())
    for name, module in model.named_modules():
        is_embedding = any(module is embedding for embedding in embeddings)
        if is_embedding and any(key.startswith(f"base_model.model.{name}.") for key in adapter.weights):
            raise ValueError(
                f"Adapter {adapter.source!r} adapts {name!r}, an embedding or unembedding, which both models share. "
                f"{_MERGE}."
            )


def _widths(module: nn.Module) -> tuple[int, int] | None:
    """Input and output features of a linear layer; None for another module."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    weight = getattr(module, "weight", None)
    if type(module).__name__ == "Conv1D" and weight is not None:  # transformers' transposed linear layer, of GPT-2
        return int(weight.shape[0]), int(weight.shape[1])
    return None
