"""Flags from config classes: every field is a flag, written with `_` or `-`."""

from collections.abc import Sequence
from dataclasses import fields, make_dataclass, replace
from typing import Any, TypeVar

import simple_parsing
from sae_lens import TrainingSAEConfig
from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY
from simple_parsing import ArgumentParser, DashVariant

from sae_lens_crosscoder.training.runner_config import CrosscoderRunnerConfig

T = TypeVar("T")


def parse(config_class: type[T], args: Sequence[str], command: str) -> T:
    """The config that flags give; a flag that no field has ends the program, as argparse does."""
    return parser(command, cfg=config_class).parse_args(args).cfg


def parser(command: str, **config_classes: Any) -> Any:
    """A parser whose flags are the fields of some config classes, each parsed into the attribute named after it."""
    flags: Any = ArgumentParser(
        prog=f"sae-lens-crosscoder {command}",
        add_option_string_dash_variants=DashVariant.UNDERSCORE_AND_DASH,
    )
    for name, config_class in config_classes.items():
        flags.add_arguments(config_class, dest=name)
    return flags


def train_config_class() -> type[CrosscoderRunnerConfig]:
    """`CrosscoderRunnerConfig` with `--architecture` choosing which crosscoder's fields are flags."""
    architectures: dict[str, Any] = {
        name: config_class
        for name, (_, config_class) in SAE_TRAINING_CLASS_REGISTRY.items()
        if config_class.__module__.startswith("sae_lens_crosscoder.")
    }
    choice = simple_parsing.subgroups(architectures, default="batchtopk_crosscoder", alias="--architecture")
    return make_dataclass("TrainConfig", [("sae", TrainingSAEConfig, choice)], bases=(CrosscoderRunnerConfig,))


def take_sweep(args: Sequence[str]) -> tuple[tuple[str, list[str]] | None, list[str]]:
    """Cut `--sweep field=a,b,c` out of the arguments.

    >>> take_sweep(["--k", "8", "--sweep", "k=8,16"])
    (('k', ['8', '16']), ['--k', '8'])
    """
    args = list(args)
    if "--sweep" not in args:
        return None, args
    at = args.index("--sweep")
    name, equals, values = (args[at + 1] if at + 1 < len(args) else "").partition("=")
    if not equals or not values:
        raise ValueError("--sweep wants a field and its values, such as --sweep k=50,100,200.")
    return (name.replace("-", "_"), values.split(",")), args[:at] + args[at + 2 :]


def with_sweep(cfg: CrosscoderRunnerConfig, name: str, values: Sequence[str]) -> CrosscoderRunnerConfig:
    """The same run with one crosscoder for every value of a numeric field, all on one stream."""
    assert cfg.sae is not None
    numeric = [f.name for f in fields(cfg.sae) if type(getattr(cfg.sae, f.name)) in (int, float)]
    if name not in numeric:
        raise ValueError(
            f"--sweep {name}=...: {name!r} is not a numeric field of this crosscoder; those are {numeric}."
        )
    kind = type(getattr(cfg.sae, name))
    saes = {f"{name}={value}": replace(cfg.sae, **{name: kind(value)}) for value in values}
    return cfg.replace(saes=saes)
