"""First docstring lines and messages are plain sentences: short, and not begun with a relative clause."""

import ast
import re
from pathlib import Path

import sae_lens_crosscoder

PACKAGE = Path(sae_lens_crosscoder.__file__).parent
RELATIVE = re.compile(r"(What|Which|Whatever|Whether|How|Where|When|Whose|That|Whoever)\b")
LONGEST = 160
END_OF_SENTENCE = re.compile(r"(?<=[.!?])\s")
LOGGERS = ("logger", "logging", "warnings")
LOGGING_METHODS = ("warn", "warning", "info", "error", "exception", "debug", "critical")


def is_riddle(text, longest=LONGEST):
    return bool(RELATIVE.match(text)) or len(text) > longest


def docstrings(tree):
    """First lines of the docstrings of a public module, its public classes, functions and methods, by line number."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, kinds) and not getattr(node, "name", "").startswith("_"):
            docstring = ast.get_docstring(node)
            if docstring:
                yield getattr(node, "lineno", 1), docstring.splitlines()[0]


def template(node):
    """The text of a literal, with {} for what an f-string fills in; None for any other expression."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        parts = [template(node.left), template(node.right)]
        return "".join(part or "{}" for part in parts) if any(parts) else None
    return None


def messages(tree):
    """Templates of errors, warnings and log lines, by line number."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            arguments = node.exc.args
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in LOGGING_METHODS
            and isinstance(node.func.value, ast.Name)
            and node.func.value.id in LOGGERS
        ):
            arguments = node.args
        else:
            continue
        for argument in arguments:
            if text := template(argument):
                yield node.lineno, END_OF_SENTENCE.split(text.strip())[0]


def riddles(kind):
    return [
        f"{path.relative_to(PACKAGE)}:{line}: {text}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for line, text in kind(ast.parse(path.read_text(encoding="utf-8")))
        if is_riddle(text)
    ]


def test_the_check_finds_what_it_looks_for():
    tree = ast.parse(
        '"""Whether it is so."""\n'
        "def run(x):\n"
        '    """Run."""\n'
        '    raise ValueError(f"{x} is wrong. " "Which is the fix.")\n'
        'def stop():\n    """Which stops."""\n    logger.warning("Whatever is wrong: %s", 1)\n'.replace("\\\n", "\n")
    )
    assert [text for _, text in docstrings(tree)] == ["Whether it is so.", "Run.", "Which stops."]
    assert [text for _, text in messages(tree)] == ["{} is wrong.", "Whatever is wrong: %s"]
    assert [is_riddle(text) for _, text in docstrings(tree)] == [True, False, True]
    assert is_riddle("x" * (LONGEST + 1))
    assert not is_riddle("Whatsoever")


def test_docstrings_begin_with_a_plain_line():
    assert riddles(docstrings) == []


def test_errors_warnings_and_log_lines_begin_with_a_plain_sentence():
    assert riddles(messages) == []
