"""The command line, `sae-lens-crosscoder COMMAND`. Flags are field names, with `_` or `-`."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, make_dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import simple_parsing
from sae_lens import TrainingSAEConfig
from sae_lens.constants import RUNNER_CFG_FILENAME
from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY
from sae_lens.training._interruption import InterruptedException
from simple_parsing import ArgumentParser, DashVariant

from sae_lens_crosscoder.analysis.diagnose import diagnose
from sae_lens_crosscoder.analysis.table import read_latents, write_latents
from sae_lens_crosscoder.demo import REPORT_FILENAME, SUMMARY_FILENAME, DemoConfig, run_demo
from sae_lens_crosscoder.experiment import EFFECTS_FILENAME, PAGE_FILENAME, CausalConfig, run_causal
from sae_lens_crosscoder.loading.authors_layout import save_dictionary_learning
from sae_lens_crosscoder.loading.foreign import ForeignOptions
from sae_lens_crosscoder.loading.load import load
from sae_lens_crosscoder.training.plan import plan
from sae_lens_crosscoder.training.runner import CrosscoderTrainingRunner
from sae_lens_crosscoder.training.runner_config import CrosscoderRunnerConfig

T = TypeVar("T")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; a mistake of the caller's prints as one line, and gives exit code 2."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help"):
        print(_usage())
        return 0
    command = COMMANDS.get(args[0])
    if command is None:
        print(f"sae-lens-crosscoder: {args[0]!r} is not a command.\n\n{_usage()}", file=sys.stderr)
        return 2
    try:
        command(args[1:])
    except (KeyboardInterrupt, InterruptedException):
        print(
            f"sae-lens-crosscoder {args[0]}: interrupted. With a checkpoint_path, training was saved there; go on with "
            "--resume_from_checkpoint latest.",
            file=sys.stderr,
        )
        return 130
    except (ValueError, OSError) as error:  # OSError: a hub, a dataset or a folder that cannot be reached
        print(f"sae-lens-crosscoder {args[0]}: {error}", file=sys.stderr)
        return 2
    return 0


def _usage() -> str:
    lines = [f"  {name:<10} {(command.__doc__ or '').splitlines()[0]}" for name, command in COMMANDS.items()]
    return "usage: sae-lens-crosscoder COMMAND [--help] [--field value ...]\n\n" + "\n".join(lines)


def _demo(args: Sequence[str]) -> None:
    """Train L1 and BatchTopK on the built-in pair, diagnose both, write a report: no download, under five minutes."""
    cfg = _parse(DemoConfig, args, "demo")
    result = run_demo(cfg)
    print(f"\n{result.comparison.to_string()}\n")
    for name, table in result.tables.items():
        print(f"{name}: {table.attrs['conclusion']}")
    print()
    print("The best latent of every known concept, chosen on one half of matched prompts and scored on the other:\n")
    print(result.concepts.round(2).to_string())
    print()
    for name in (SUMMARY_FILENAME, REPORT_FILENAME, *result.tables):
        print(result.output_path / name)


@dataclass
class PlanConfig:
    """What a plan is made with, beside the run's own fields."""

    memory_gib: float | None = None
    """Memory of each GPU, or of the CPU when no GPU is used; by default what this machine has."""
    model_config: str | None = None
    """A folder with a transformers config.json of models like these, for when their own cannot be reached."""


def _plan(args: Sequence[str]) -> None:
    """Say what training needs (memory, disk, time) and what would make it fit; with train's flags, or a config."""
    sweep, args = _take_sweep(args)
    if args and not args[0].startswith("-"):
        if sweep is not None:
            raise ValueError("--sweep goes with flags; a saved config already says which crosscoders it trains.")
        cfg, options = _saved_config_with(args[0], args[1:])
    else:
        parsed = _parser("plan", cfg=_train_config_class(), options=PlanConfig).parse_args(args)
        cfg, options = parsed.cfg, parsed.options
        if sweep is not None:
            cfg = _with_sweep(cfg, *sweep)
    print(plan(cfg, memory_gib=options.memory_gib, model_config=options.model_config))


def _saved_config_with(path: str, args: Sequence[str]) -> tuple[CrosscoderRunnerConfig, PlanConfig]:
    """A config that training wrote, with fields changed by flags, and what to plan with."""
    saved = _read_runner_config(path)
    first: Any = saved.sae
    config_class: Any = make_dataclass("SavedConfig", [("sae", type(first), None)], bases=(CrosscoderRunnerConfig,))
    parser = _parser("plan", options=PlanConfig)
    parser.add_arguments(config_class, dest="cfg", default=replace(saved, saes=None))
    parsed = parser.parse_args(args)
    cfg: CrosscoderRunnerConfig = parsed.cfg
    if saved.saes is not None:
        if cfg.sae != first:
            raise ValueError(f"{path} trains several crosscoders: their fields can only be changed in the file.")
        cfg = replace(cfg, sae=None, saes=saved.saes)
    cfg.checkpoint_path = saved.checkpoint_path  # to which the constructor appended more random ids
    return cfg, parsed.options


def _train(args: Sequence[str]) -> None:
    """Train crosscoders on a pair of models, and diagnose them on held-out tokens."""
    sweep, args = _take_sweep(args)
    cfg: CrosscoderRunnerConfig = _parse(_train_config_class(), args, "train")
    if sweep is not None:
        cfg = _with_sweep(cfg, *sweep)
    runner = CrosscoderTrainingRunner(cfg)
    crosscoders: Any = runner.run()
    print(f"\n{runner.summary.to_string()}\n")
    if cfg.output_path is None:
        return
    for name, crosscoder in crosscoders.items() if cfg.saes is not None else [("", crosscoders)]:
        folder = Path(cfg.output_path, name)
        table = diagnose(crosscoder, runner.pair, runner.held_out_tokens)
        write_latents(table, folder)
        print(f"{folder}: {table.attrs['conclusion']}")


@dataclass
class DiagnoseConfig:
    """Which crosscoder to diagnose, and on what."""

    crosscoder: str = simple_parsing.field(positional=True)
    """A crosscoder folder or Hub id."""
    n_held_out_rows: int | None = None
    """Contexts to diagnose on, from those that training held out; by default all of them."""
    null: list[str] = field(default_factory=list)
    """Folders of null runs: the same training on a pair in which nothing differs. They give q-values."""
    output_path: str | None = None
    """Where latents.parquet goes; by default the crosscoder's own folder."""


def _diagnose(args: Sequence[str]) -> None:
    """Diagnose a trained crosscoder again, on the rows that its training held out."""
    cfg = _parse(DiagnoseConfig, args, "diagnose")
    crosscoder = load(cfg.crosscoder)
    nulls = [read_latents(folder) for folder in cfg.null]
    if not Path(cfg.crosscoder, RUNNER_CFG_FILENAME).exists():
        raise ValueError(
            f"{cfg.crosscoder} has no {RUNNER_CFG_FILENAME}, which says what it was trained on: use slc.diagnose with "
            "a pair and tokens of your own."
        )
    runner_cfg = _read_runner_config(cfg.crosscoder)
    if cfg.n_held_out_rows is not None and cfg.n_held_out_rows > runner_cfg.n_held_out_rows:
        raise ValueError(
            f"Training held out {runner_cfg.n_held_out_rows} rows, so n_held_out_rows={cfg.n_held_out_rows} would "
            "diagnose on training data."
        )
    runner = CrosscoderTrainingRunner(runner_cfg)
    crosscoder.to(runner_cfg.device)
    table = diagnose(crosscoder, runner.pair, runner.held_out_tokens[: cfg.n_held_out_rows], null=nulls)
    print(table.attrs["conclusion"])
    print(write_latents(table, cfg.output_path or cfg.crosscoder))


def _causal(args: Sequence[str]) -> None:
    """Patch latents from the chat into the base model, and say how much nearer that comes to the chat model."""
    cfg = _parse(CausalConfig, args, "causal")
    effects = run_causal(cfg)
    shown = effects[effects.window.isin(["all", "tokens 2-10"])]
    short = shown.pivot_table("kl_nats", ["setup", "variant"], ["crosscoder", "window"], sort=False)
    print(f"\nKL in nats per token of the answer, from the chat model:\n\n{short.round(3).to_string()}\n")
    for name in (EFFECTS_FILENAME, PAGE_FILENAME):
        print(Path(cfg.output_path, name))


@dataclass(kw_only=True)
class ConvertConfig(ForeignOptions):
    """Whose crosscoder to convert, and to what."""

    source: str = simple_parsing.field(positional=True)
    """A folder, weights file or Hub id, in any layout that slc.load reads."""
    target: str = simple_parsing.field(positional=True)
    """The folder to write."""
    to: Literal["sae_lens_crosscoder", "dictionary_learning"] = "sae_lens_crosscoder"
    """The layout to write: this package's, or that of the paper's authors."""
    device: str = "cpu"
    """Where to convert."""


def _convert(args: Sequence[str]) -> None:
    """Convert other people's crosscoders to this package's layout, or any crosscoder to that of the paper's authors."""
    cfg = _parse(ConvertConfig, args, "convert")
    if Path(cfg.source).resolve() == Path(cfg.target).resolve():
        raise ValueError(f"{cfg.target} is the source as well: name another folder, so that nothing is overwritten.")
    options = {name: getattr(cfg, name) for name in cfg.given}
    crosscoder = load(cfg.source, device=cfg.device, **options)
    if cfg.to == "dictionary_learning":
        save_dictionary_learning(crosscoder, cfg.target)
    else:
        crosscoder.save_model(cfg.target)
    print(cfg.target)


def _read_runner_config(path: str) -> CrosscoderRunnerConfig:
    """The config that training wrote, from the file itself or from the crosscoder's folder."""
    file = Path(path, RUNNER_CFG_FILENAME) if Path(path).is_dir() else Path(path)
    if not file.exists():
        raise ValueError(f"There is no {file}: give a {RUNNER_CFG_FILENAME} that training wrote, or its folder.")
    return CrosscoderRunnerConfig.from_dict(json.loads(file.read_text()))


def _train_config_class() -> type[CrosscoderRunnerConfig]:
    """`CrosscoderRunnerConfig` with `--architecture` choosing which crosscoder's fields are flags."""
    architectures: dict[str, Any] = {
        name: config_class
        for name, (_, config_class) in SAE_TRAINING_CLASS_REGISTRY.items()
        if config_class.__module__.startswith("sae_lens_crosscoder.")
    }
    choice = simple_parsing.subgroups(architectures, default="batchtopk_crosscoder", alias="--architecture")
    return make_dataclass("TrainConfig", [("sae", TrainingSAEConfig, choice)], bases=(CrosscoderRunnerConfig,))


def _take_sweep(args: Sequence[str]) -> tuple[tuple[str, list[str]] | None, list[str]]:
    """Cut `--sweep field=a,b,c` out of the arguments.

    >>> _take_sweep(["--k", "8", "--sweep", "k=8,16"])
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


def _with_sweep(cfg: CrosscoderRunnerConfig, name: str, values: Sequence[str]) -> CrosscoderRunnerConfig:
    """The same run with one crosscoder for every value of a numeric field, all on one stream."""
    assert cfg.sae is not None
    numeric = [f.name for f in fields(cfg.sae) if type(getattr(cfg.sae, f.name)) in (int, float)]
    if name not in numeric:
        raise ValueError(
            f"--sweep {name}=...: {name!r} is not a numeric field of this crosscoder; those are {numeric}."
        )
    kind = type(getattr(cfg.sae, name))
    saes = {f"{name}={value}": replace(cfg.sae, **{name: kind(value)}) for value in values}
    swept = replace(cfg, sae=None, saes=saes)
    swept.checkpoint_path = cfg.checkpoint_path  # the constructor appended a second random id
    return swept


def _parse(config_class: type[T], args: Sequence[str], command: str) -> T:
    return _parser(command, cfg=config_class).parse_args(args).cfg


def _parser(command: str, **config_classes: Any) -> Any:
    """A parser whose flags are the fields of some config classes, each parsed into the attribute named after it."""
    parser: Any = ArgumentParser(
        prog=f"sae-lens-crosscoder {command}",
        add_option_string_dash_variants=DashVariant.UNDERSCORE_AND_DASH,
    )
    for name, config_class in config_classes.items():
        parser.add_arguments(config_class, dest=name)
    return parser


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "demo": _demo,
    "plan": _plan,
    "train": _train,
    "diagnose": _diagnose,
    "causal": _causal,
    "convert": _convert,
}
