"""The command line, `sae-lens-crosscoder COMMAND`; each command is the `run` of the module named after it.

Help, the version and a mistyped command import none of the package's heavy parts.
"""

import importlib
import sys
from collections.abc import Sequence

from sae_lens_crosscoder.cli.process import tune_process

COMMANDS = {
    "demo": "Train L1 and BatchTopK on the built-in pair, and report on both: no download, under five minutes.",
    "audit": "Ask what a fine-tune changed: findings, evidence and limits on one page, within a time budget.",
    "look": "Find where and on what two models differ, before training: no crosscoder needed, minutes on a CPU.",
    "plan": "Show what training needs (memory, disk, time), and what would make it fit.",
    "train": "Train crosscoders on a pair of models, and diagnose them on held-out tokens.",
    "cache": "Write a run's activations to disk before training.",
    "diagnose": "Diagnose a crosscoder on held-out rows, on data that you name, or from its weights alone.",
    "causal": "Patch latents from the chat into the base model, and measure the KL divergence from the chat model.",
    "report": "Write one HTML page about all latents of one or several crosscoders.",
    "serve": "Open the report in a browser with a panel that runs both models: try prompts, ablate and steer latents.",
    "paper-report": "Make every table and figure of the paper for any crosscoder, beside the paper's numbers.",
    "interpret": "Explain latents by a language model, and score the explanations.",
    "convert": "Convert a published crosscoder to this package's layout, or a crosscoder to the paper authors' layout.",
    "publish": "Upload a crosscoder's folder with a generated model card to the Hub, private unless --public.",
    "doctor": "Check versions, devices, access to Gemma and disk space, and name the next command.",
}
_ON_INTERRUPT = {
    "audit": "Answers already written are kept; the same command continues.",
    "cache": "Finished shards are kept; the same command writes the missing ones.",
    "causal": "Finished work is kept in the output folder; the same command continues it.",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; an error of the user's prints as one line, with exit code 2."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help"):
        print(_usage())
        return 0
    if args[0] == "--version":
        from sae_lens_crosscoder.storage.versions import package_versions

        print(package_versions(("sae-lens-crosscoder",))["sae-lens-crosscoder"])
        return 0
    if args[0] not in COMMANDS:
        from difflib import get_close_matches

        near = get_close_matches(args[0], COMMANDS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        print(f"sae-lens-crosscoder: unknown command {args[0]!r}.{hint}\n\n{_usage()}", file=sys.stderr)
        return 2
    return _run(args[0], args[1:])


def _run(name: str, args: Sequence[str]) -> int:
    tune_process()
    importlib.import_module("sae_lens_crosscoder.public")  # registers the architectures
    command = importlib.import_module(f"sae_lens_crosscoder.cli.{name.replace('-', '_')}")
    from sae_lens_crosscoder.training.interruption import TrainingInterrupted

    try:
        command.run(args)
    except TrainingInterrupted as error:
        _print_error(name, error)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"sae-lens-crosscoder {name}: interrupted. {_ON_INTERRUPT.get(name, '')}".rstrip(), file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:  # OSError: a hub, dataset, disk or folder that cannot be used
        _print_error(name, error)
        return 2
    return 0


def _print_error(command: str, error: BaseException) -> None:
    from sae_lens_crosscoder.storage.secrets import redact_secrets

    notes: list[str] = getattr(error, "__notes__", [])
    print(f"sae-lens-crosscoder {command}: {redact_secrets(' '.join([str(error), *notes]))}", file=sys.stderr)


def _usage() -> str:
    lines = [f"  {name:<13} {summary}" for name, summary in COMMANDS.items()]
    head = "usage: sae-lens-crosscoder COMMAND [--help] [--flag value ...]\n       sae-lens-crosscoder --version\n"
    return "\n".join([head, *lines])
