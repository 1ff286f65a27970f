"""The API reference builds, without a warning, and its text covers what is public and names only what is there."""

import inspect
import warnings

import docstring_parser
import pdoc
import pytest

import sae_lens_crosscoder as slc

PUBLIC = {name: getattr(slc, name) for name in slc.__all__ if callable(getattr(slc, name))}
# What these mean is the same everywhere, and in the glossary or the type; any other parameter is explained.
SAID_BY_NAME = {
    *("crosscoder", "pair", "tokens", "template", "response", "setups", "activations", "trainers", "cfg", "model"),
    *("table", "chats", "texts", "tokenizer", "cases", "answers", "explanations", "norms", "directions", "latents"),
    *("path", "folder", "output_path", "title", "name", "first", "second", "column", "nus", "others", "changes"),
    *("device", "dtype", "seed", "batch_size", "batch_size_prompts", "max_length", "max_new_tokens", "hook_name"),
    *("checkpoint_path", "cfg_overrides", "force_download", "license", "write_card", "add_generation_prompt"),
    *("n_top", "n_quantiles", "n_per_quantile", "texts_per_prompt"),
    *("price_per_million_answer_tokens", "price_per_million_prompt_tokens"),
}


def members():
    """Every public name, and every public method and property that a public class of ours defines."""
    for name, public in PUBLIC.items():
        yield name, public
        if inspect.isclass(public):
            for attribute, value in vars(public).items():
                is_text = inspect.isroutine(value) or inspect.isdatadescriptor(value) or hasattr(value, "func")
                if is_text and not attribute.startswith("_"):
                    yield f"{name}.{attribute}", value


MEMBERS = dict(members())


def documented(function):
    """The parameters that a docstring explains."""
    parsed = docstring_parser.parse(inspect.getdoc(function) or "", docstring_parser.DocstringStyle.GOOGLE)
    explained = [param.arg_name for param in parsed.params if param.args[0] == "param"]
    return {name.strip() for names in explained for name in names.split(",")}


def parameters(function):
    return set(inspect.signature(function).parameters) - {"self", "cls"}


@pytest.mark.parametrize("name", MEMBERS)
def test_it_has_a_docstring(name):
    """Of its own; an override may have that of what it overrides, but a class not its parent's or its signature."""
    member = MEMBERS[name]
    text = vars(member).get("__doc__") if inspect.isclass(member) else inspect.getdoc(getattr(member, "func", member))
    assert text
    assert not text.startswith(f"{name}(")
    first = text.strip().split("\n\n")[0]
    assert first.endswith((".", ":")), f"the docstring of {name} does not begin with a sentence: {first!r}"


@pytest.mark.parametrize("name", [name for name, member in MEMBERS.items() if callable(member)])
def test_arguments_that_it_explains_exist(name):
    explained = documented(MEMBERS[name])
    assert explained <= (parameters(MEMBERS[name]) if explained else set())


@pytest.mark.parametrize("name", [name for name, public in PUBLIC.items() if inspect.isfunction(public)])
def test_parameters_of_a_function_are_explained_unless_the_name_says_it(name):
    assert parameters(PUBLIC[name]) - documented(PUBLIC[name]) <= SAID_BY_NAME


def test_the_reference_builds_and_has_every_public_name(tmp_path):
    pdoc.render.configure(docformat="google")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        pdoc.pdoc("sae_lens_crosscoder", output_directory=tmp_path)
    page = (tmp_path / "sae_lens_crosscoder.html").read_text()
    assert [name for name in slc.__all__ if f'<section id="{name}">' not in page] == []
