"""Flags and help: one spelling, grouped by origin, and clear answers to wrong flags."""

import importlib
import pkgutil
import re

import pytest

import sae_lens_crosscoder.cli as cli
from sae_lens_crosscoder.cli import COMMANDS, main

FLAG = re.compile(r"^  (--[\w.-]+)", flags=re.M)
SMALL = ["--d-model", "96", "--d-sae", "32", "--k", "4"]


def help_of(capsys, *args):
    with pytest.raises(SystemExit) as stop:
        main(list(args))
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_every_command_is_a_module_and_named_in_the_help(capsys):
    assert main([]) == main(["--help"]) == 0
    shown = capsys.readouterr().out
    modules = {module.name.replace("_", "-") for module in pkgutil.iter_modules(cli.__path__)}
    assert modules - {"flags", "process", "train-flags"} == COMMANDS.keys()
    for name, summary in COMMANDS.items():
        assert f"  {name} " in shown
        assert summary in shown
        assert callable(importlib.import_module(f"sae_lens_crosscoder.cli.{name.replace('-', '_')}").run)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_positionals_and_spells_every_flag_once_with_dashes(command, capsys):
    shown = help_of(capsys, command, "--help")
    flags = FLAG.findall(shown)
    assert len(flags) == len(set(flags))
    assert not any("_" in flag for flag in flags)
    assert "<" not in shown.replace("<bos>", "")
    assert shown.startswith(f"usage: sae-lens-crosscoder {command} ")
    positionals = {"diagnose": "CROSSCODER", "convert": "SOURCE TARGET", "publish": "CROSSCODER REPO_ID"}
    assert f"{command} {positionals.get(command, '')}".rstrip() in shown.splitlines()[0]
    assert ("--dry-run" in flags) == (command in ("interpret", "publish"))


def test_our_flags_come_first_and_saelens_flags_only_on_request(capsys):
    ours, everything = help_of(capsys, "train", "--help"), help_of(capsys, "train", "--help-all")
    assert "--adam-beta1" not in ours
    assert "SAELens:" not in ours
    assert everything.index("SAELens:") > max(everything.index(flag) for flag in FLAG.findall(ours))
    for flag in ("--chat-model-name", "--k", "--aux-loss-coefficient", "--training-tokens", "--d-sae", "--sweep"):
        assert flag in FLAG.findall(ours), flag
    assert "--adam-beta1" in FLAG.findall(everything)


def test_flags_that_cannot_apply_are_not_shown(capsys):
    batchtopk = help_of(capsys, "train", "--help-all")
    l1 = help_of(capsys, "train", "--architecture", "crosscoder", "--help-all")
    for flag in ("--hook-head-index", "--compile-llm", "--hook-eval", "--saes", "--metadata", "--lp-norm"):
        assert flag not in FLAG.findall(batchtopk + l1), flag
    assert "--l1-coefficient" in FLAG.findall(l1)
    assert "--l1-coefficient" not in FLAG.findall(batchtopk)
    assert "--topk-threshold-lr" not in FLAG.findall(l1)
    assert "--topk-threshold-lr" in FLAG.findall(batchtopk)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["train", *SMALL, "--l1_coefficient", "1"], "--l1-coefficient belongs to --architecture crosscoder."),
        (
            ["train", *SMALL, "--architecture", "crosscoder"],
            "--k belongs to --architecture batchtopk_crosscoder, topk_crosscoder, matryoshka_batchtopk_crosscoder. See "
            "sae-lens-crosscoder train --help.",
        ),
        (["train", *SMALL, "--architecture", "l1"], "unknown architecture 'l1': choose one of crosscoder, batchtopk_"),
        (["train", *SMALL, "--learning_rate", "1"], "unknown flag --learning_rate."),
        (["plan", *SMALL, "--chat-model-nam=x"], "unknown flag --chat-model-nam. Did you mean --chat-model-name?"),
        (["train", *SMALL, "stray"], "unexpected argument 'stray'"),
        (["train"], "--d-sae"),
        (["publish", "folder"], "the following arguments are required: REPO_ID"),
    ],
)
def test_a_wrong_flag_is_answered_with_one_line(args, message, capsys):
    assert main(args) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert len(shown.splitlines()) == 1
