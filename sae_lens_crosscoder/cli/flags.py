"""Flags from config classes: every field is a flag, written with dashes; underscores are accepted too."""

import argparse
import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn, TypeVar

from simple_parsing import ArgumentParser, DashVariant

from sae_lens_crosscoder.cli import COMMANDS

T = TypeVar("T")
Section = Callable[[str], str | None]


def parse(config_class: type[T], args: Sequence[str], command: str) -> T:
    """Parse the flags of a command into its config."""
    flags: Any = FlagParser(command)
    flags.add_arguments(config_class, dest="cfg")
    return flags.parse_args(args).cfg


def flag_of(name: str) -> str:
    """Spell a field's flag as help and errors do.

    >>> flag_of("n_held_out_rows")
    '--n-held-out-rows'
    """
    return f"--{name.replace('_', '-')}"


class FlagParser(ArgumentParser):
    """A parser of config fields with short, grouped help; a wrong flag raises a ValueError."""

    def __init__(self, command: str, sections: Section | None = None, positional: str = "") -> None:
        """Prepare the parser of a command.

        Args:
            sections: the help section of each field by its full name (such as `cfg.sae.k`), None for a hidden field; a
                section that starts with `SAELens` is shown by --help-all only.
            positional: the name of an argument that the command parses itself.
        """
        super().__init__(
            prog=f"sae-lens-crosscoder {command}",
            description=COMMANDS[command],
            add_option_string_dash_variants=DashVariant.UNDERSCORE_AND_DASH,
            allow_abbrev=False,
        )
        self.command = command
        self.help_texts: dict[str, str] = {}
        self._sections = sections
        self._positional = positional
        self._shows_all = False
        if sections is not None:
            self.add_argument("--help-all", action=_HelpAll, nargs=0, help="show SAELens's flags as well and exit")

    def parse_args(self, args: Sequence[str], namespace: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        if not {"-h", "--help", "--help-all"}.intersection(args):
            self._preprocessing(list(args))
            for argument in args:  # before any config is made, whose own error would hide this one
                if argument.startswith("--") and argument.split("=")[0] not in self._option_string_actions:
                    self.error(self.describe_unknown(argument))
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.error(self.describe_unknown(unknown[0]))
        return parsed

    def describe_unknown(self, argument: str) -> str:
        """Explain why an argument is not accepted."""
        name = argument.split("=")[0]
        if not name.startswith("-"):
            return f"unexpected argument {argument!r}"
        near = difflib.get_close_matches(name.replace("_", "-"), [_flag(action) for action in self._flags()], n=1)
        return f"unknown flag {name}." + (f" Did you mean {near[0]}?" if near else "")

    def error(self, message: str) -> NoReturn:
        for action in self._actions:
            if not action.option_strings:
                message = message.replace(action.dest, _name(action))
        raise ValueError(f"{message.rstrip('.')}. See sae-lens-crosscoder {self.command} --help.")

    def show_all(self) -> None:
        """Include SAELens's flags in the help."""
        self._shows_all = True

    def format_help(self) -> str:
        formatter = argparse.HelpFormatter(self.prog, max_help_position=32, width=110)
        actions = [action for action in self._actions if action.dest not in ("help", "help_all")]
        positionals = [action for action in actions if not action.option_strings]
        names = [*map(_name, positionals), *([self._positional] if self._positional else [])]
        formatter.add_usage(" ".join([self.prog, *names, "[--flag value ...]"]), [], [])
        formatter.add_text(self.description)
        self._add_section(formatter, "arguments", positionals)
        sections: dict[str, list[argparse.Action]] = {}
        for action in actions:
            section = "flags" if self._sections is None else self._sections(action.dest)
            if action.option_strings and section is not None:
                sections.setdefault(section, []).append(action)
        for title in sorted(sections, key=lambda title: title.startswith("SAELens")):
            if self._shows_all or not title.startswith("SAELens"):
                self._add_section(formatter, title, sections[title])
        if self._sections is not None and not self._shows_all:
            formatter.add_text("--help-all shows SAELens's flags as well.")
        return formatter.format_help()

    def _flags(self) -> Iterable[argparse.Action]:
        return [action for action in self._actions if action.option_strings]

    def _add_section(self, formatter: Any, title: str, actions: Sequence[argparse.Action]) -> None:
        formatter.start_section(title)
        for action in actions:
            shown = argparse.Action(
                option_strings=[_flag(action)] if action.option_strings else [],
                dest=_name(action),
                metavar=_value(action),
                help=_help(action, self.help_texts.get(action.dest)),
            )
            formatter.add_argument(shown)
        formatter.end_section()


class _HelpAll(argparse.Action):
    def __call__(self, parser: Any, *args: Any, **kwargs: Any) -> None:
        parser.show_all()
        parser.print_help()
        parser.exit()


def _name(action: argparse.Action) -> str:
    return action.dest.rpartition(".")[2].upper()


def _flag(action: argparse.Action) -> str:
    """The one spelling of a flag: the last of its names, with dashes; a second `--sae.dtype` keeps its prefix."""
    names = [name for name in action.option_strings if not name.startswith("--no")] or action.option_strings
    return names[-1].replace("_", "-") if len(names[-1]) > 2 else f"-{names[-1]}"


def _value(action: argparse.Action) -> str:
    if action.choices is not None:
        return "{" + ",".join(map(str, action.choices)) + "}"
    if not action.option_strings:
        return _name(action)
    value = re.sub(r"[\[\]]", "", str(action.metavar or getattr(action.type, "__name__", "value"))).split(" ")[0]
    return f"{value} ..." if action.nargs in ("*", "+") else value


def _help(action: argparse.Action, text: str | None) -> str:
    words = re.sub(r"<__TEMP__>|\(default: %\(default\)s\)", "", text or action.help or "")
    words = " ".join(words.split()).replace("%", "%%")
    default = action.default
    if action.required or default in (None, "", argparse.SUPPRESS) or default != default:
        return words
    return f"{words} (default: {default})".strip()
