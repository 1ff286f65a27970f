"""Flags of a training run: which architecture they belong to, how help groups them, and sweeps."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any

import simple_parsing
from sae_lens import TrainingSAEConfig
from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY

from sae_lens_crosscoder.cli.flags import FlagParser, flag_of
from sae_lens_crosscoder.training.runner_config import CrosscoderRunnerConfig

DEFAULT_ARCHITECTURE = "batchtopk_crosscoder"
_PACKAGE = "sae_lens_crosscoder."
# Fields of SAELens's that most runs set, with help of our own.
_PROMINENT = {
    "dataset_path": "Training data: a dataset's Hub name or a local folder; see --mix for several sources.",
    "device": "Device that trains the crosscoder.",
    "llm_device": "Device of the language models; by default that of the crosscoder.",
    "cached_activations_path": "Folder of cached activations, as `cache` writes it.",
    "store_batch_size_prompts": "Prompts per forward pass of the language models.",
    "output_path": "Folder for the trained crosscoder; None saves nothing.",
    "checkpoint_path": "Folder of checkpoints, to which a run id is appended; None saves none.",
    "n_checkpoints": "Number of checkpoints during training.",
    "save_final_checkpoint": "Save a checkpoint after the last step as well.",
    "resume_from_checkpoint": "A checkpoint's folder, or `latest`.",
    "seed": "Seed of everything random.",
    "log_to_wandb": "Log to Weights & Biases.",
}
_PROMINENT_OF_CROSSCODER = {
    "d_sae": "Number of latents.",
    "k": "Latents kept per token, on average over the batch.",
    "l1_coefficient": "Weight of the sparsity loss.",
    "l1_warm_up_steps": "Steps over which the sparsity weight rises.",
}
# Our fields whose help SAELens would give.
_HELP = {
    "hook_name": "Hook to read activations from, a TransformerLens name.",
    "context_size": "Tokens per context.",
    "training_tokens": "Tokens to train on.",
    "train_batch_size_tokens": "Tokens per training step.",
    "lr": "Peak learning rate.",
    "lr_warm_up_steps": "Steps over which the learning rate rises.",
}
# Fields that a pair of models cannot use, or that only code can set.
_INAPPLICABLE = {
    "hook_eval", "hook_head_index", "dataset_trust_remote_code", "compile_llm", "llm_compilation_mode",
    "compile_sae", "sae_compilation_mode", "dead_feature_threshold", "verbose", "sae_lens_version",
    "sae_lens_training_version", "saes", "log_activations_store_to_wandb", "log_optimizer_state_to_wandb",
    "log_weights_to_wandb", "apply_b_dec_to_input", "reshape_activations", "metadata", "use_sparse_activations",
    "lp_norm",
}  # fmt: skip


def architectures() -> dict[str, Any]:
    """Training configs of this package's architectures, by name."""
    return {
        name: config_class
        for name, (_, config_class) in SAE_TRAINING_CLASS_REGISTRY.items()
        if config_class.__module__.startswith(_PACKAGE)
    }


def train_parser(command: str, options: type | None = None, positional: str = "") -> FlagParser:
    """Build the parser of a run's config; `--architecture` chooses the crosscoder's fields."""
    choice = simple_parsing.subgroups(architectures(), default=DEFAULT_ARCHITECTURE, alias="--architecture")
    return run_parser(command, run_config_class(TrainingSAEConfig, choice), options, positional)


def run_config_class(crosscoder_config: type, default: Any = None) -> Any:
    """The class of a run's config whose `sae` is of one type."""

    # No make_dataclass: simple_parsing would look for the source of its class in vain, once per field.
    class RunConfig(CrosscoderRunnerConfig):
        sae: crosscoder_config = default  # pyright: ignore[reportInvalidTypeForm, reportIncompatibleVariableOverride]

    # A sweep's config has several crosscoders and no `sae`, so that the constructor must not check its type.
    return dataclass(RunConfig)


def run_parser(
    command: str, config_class: type, options: type | None, positional: str = "", default: Any = None
) -> FlagParser:
    """Build a parser of a run's config and of a command's own options."""
    parser = _RunParser(command, _section, positional)
    parser.help_texts = {
        **{f"cfg.{name}": text for name, text in {**_PROMINENT, **_HELP}.items()},
        **{f"cfg.sae.{name}": text for name, text in _PROMINENT_OF_CROSSCODER.items()},
        "cfg.logger.log_to_wandb": _PROMINENT["log_to_wandb"],
        "cfg.sae": "Architecture of the crosscoder.",
    }
    if options is not None:
        parser.add_arguments(options, dest="options")
    parser.add_arguments(config_class, dest="cfg", default=default)
    return parser


class _RunParser(FlagParser):
    """A parser that knows the flags of the other architectures."""

    def parse_args(self, args: Sequence[str], namespace: Any = None) -> Any:
        for flag, value in pairwise(args):
            if flag in ("--architecture", "--sae") and value not in architectures():
                self.error(f"unknown architecture {value!r}: choose one of {', '.join(architectures())}")
        return super().parse_args(args, namespace)

    def describe_unknown(self, argument: str) -> str:
        name = argument.split("=")[0].lstrip("-").replace("-", "_")
        owners = [
            architecture for architecture, cfg in architectures().items() if name in {f.name for f in fields(cfg)}
        ]
        if owners:
            return f"{flag_of(name)} belongs to --architecture {', '.join(owners)}."
        return super().describe_unknown(argument)


def _section(dest: str) -> str | None:
    """The help section of a field by its full name."""
    path, _, name = dest.rpartition(".")
    if name in _INAPPLICABLE:
        return None
    if path == "options":
        return "this command"
    if path == "cfg.sae" or dest == "cfg.sae":
        ours = {name for config_class in architectures().values() for name in _our_fields(config_class)}
        return (
            "crosscoder"
            if name in ours | _PROMINENT_OF_CROSSCODER.keys() or dest == "cfg.sae"
            else "SAELens: crosscoder"
        )
    return "run" if name in _our_fields(CrosscoderRunnerConfig) | _PROMINENT.keys() else "SAELens: run"


def _our_fields(config_class: type) -> set[str]:
    ours = [base for base in config_class.__mro__ if base.__module__.startswith(_PACKAGE)]
    return {name for base in ours for name in base.__annotations__}


def with_sweep(cfg: CrosscoderRunnerConfig, sweep: str) -> CrosscoderRunnerConfig:
    """Replace the crosscoder of a run by one for every value of a numeric field, given as `k=50,100,200`."""
    assert cfg.sae is not None
    name, _, values = sweep.partition("=")
    name = name.replace("-", "_")
    numeric = [f.name for f in fields(cfg.sae) if type(getattr(cfg.sae, f.name)) in (int, float)]
    if name not in numeric or not values:
        raise ValueError(
            f"--sweep {sweep}: expected a numeric field and values, such as k=50,100,200. Fields: {numeric}."
        )
    kind = type(getattr(cfg.sae, name))
    saes = {f"{name}={value}": replace(cfg.sae, **{name: kind(value)}) for value in values.split(",")}
    return cfg.replace(saes=saes)
