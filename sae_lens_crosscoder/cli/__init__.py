"""The command line, `sae-lens-crosscoder COMMAND`; each command is the `run` of the module named after it."""

import sys
from collections.abc import Callable, Sequence

from sae_lens_crosscoder.cli import (
    cache,
    causal,
    convert,
    demo,
    diagnose,
    doctor,
    interpret,
    paper_report,
    plan,
    publish,
    report,
    train,
)
from sae_lens_crosscoder.storage.secrets import redact_secrets
from sae_lens_crosscoder.training.interruption import TrainingInterrupted

COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "demo": demo.run,
    "plan": plan.run,
    "train": train.run,
    "cache": cache.run,
    "diagnose": diagnose.run,
    "causal": causal.run,
    "report": report.run,
    "paper-report": paper_report.run,
    "interpret": interpret.run,
    "convert": convert.run,
    "publish": publish.run,
    "doctor": doctor.run,
}
_GO_ON = {
    "cache": "What is written stays; the same command writes what is missing.",
    "causal": "What is done is kept in the output folder; the same command goes on from there.",
}


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
    except TrainingInterrupted as error:
        _explain(args[0], error)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"sae-lens-crosscoder {args[0]}: interrupted. {_GO_ON.get(args[0], '')}".rstrip(), file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:  # OSError: a hub, a dataset, a disk or a folder that cannot be used
        _explain(args[0], error)
        return 2
    return 0


def _explain(command: str, error: BaseException) -> None:
    notes: list[str] = getattr(error, "__notes__", [])
    print(f"sae-lens-crosscoder {command}: {redact_secrets(' '.join([str(error), *notes]))}", file=sys.stderr)


def _usage() -> str:
    lines = [f"  {name:<13} {(command.__doc__ or '').splitlines()[0]}" for name, command in COMMANDS.items()]
    return "usage: sae-lens-crosscoder COMMAND [--help] [--field value ...]\n\n" + "\n".join(lines)
