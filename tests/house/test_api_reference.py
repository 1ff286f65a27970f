"""Everything public has a docstring that begins with a sentence, and explains its parameters."""

import importlib
import inspect

import docstring_parser

import sae_lens_crosscoder as slc
from tests.house.pages import public_modules

MODULES = [importlib.import_module(name) for name in public_modules()]
# A function that is public in two places counts once, under the last of its names.
PUBLIC = {name: getattr(module, name) for module in MODULES for name in getattr(module, "__all__", ())}
PUBLIC = {name: value for name, value in PUBLIC.items() if inspect.isclass(value) or inspect.isfunction(value)}
# Parameters with one meaning everywhere, given by the glossary or the type. Any other parameter needs an explanation.
KNOWN_PARAMETERS = {
    *("crosscoder", "pair", "tokens", "responses", "setups", "trainers", "cfg", "model", "world", "truth"),
    *("table", "chats", "tokenizer", "cases", "answers", "explanations", "norms", "directions"),
    *("path", "folder", "output_path", "title", "name", "first", "second", "column", "nus", "others", "figures"),
    *("device", "dtype", "seed", "batch_size", "max_length", "max_new_tokens", "hook_name", "model_class_name"),
    *("checkpoint_path", "license", "write_card", "add_generation_prompt"),
    *("n_top", "n_quantiles", "n_per_quantile", "texts_per_prompt", "n_rows", "prompts_per_shard", "k"),
    *("price_per_million_answer_tokens", "price_per_million_prompt_tokens", "model_from_pretrained_kwargs"),
    *("activations", "layout", "d_models", "logits", "log_p", "log_q", "formats"),
}


def members():
    """Every public name, and every public method and property that a public class of ours defines."""
    for name, public in PUBLIC.items():
        yield name, public
        if inspect.isclass(public):
            for attribute, value in vars(public).items():
                is_text = inspect.isroutine(value) or inspect.isdatadescriptor(value) or hasattr(value, "func")
                is_tuple_field = hasattr(public, "_fields") and attribute in public._fields
                if is_text and not is_tuple_field and not attribute.startswith("_"):
                    yield f"{name}.{attribute}", value


MEMBERS = dict(members())


def documented(function):
    """The parameters that a docstring explains."""
    parsed = docstring_parser.parse(inspect.getdoc(function) or "", docstring_parser.DocstringStyle.GOOGLE)
    explained = [param.arg_name for param in parsed.params if param.args[0] == "param"]
    return {name.strip() for names in explained for name in names.split(",")}


def parameters(function):
    return set(inspect.signature(function).parameters) - {"self", "cls"}


def docstring(member):
    """Its own; a method may have that of what it overrides, but a class not its parent's."""
    return vars(member).get("__doc__") if inspect.isclass(member) else inspect.getdoc(getattr(member, "func", member))


def overrides(member):
    return any(getattr(each, "__override__", False) for each in (member, getattr(member, "__func__", None)))


def test_everything_public_begins_its_docstring_with_a_sentence():
    """But for overrides of what the hosts themselves leave without a docstring."""
    texts = {name: docstring(member) for name, member in MEMBERS.items()}
    assert [name for name, text in texts.items() if not text and not overrides(MEMBERS[name])] == []
    first = {name: text.strip().split("\n\n")[0] for name, text in texts.items() if text}
    # A dataclass without a docstring gets its signature for one.
    no_sentence = {name: text for name, text in first.items() if not text.endswith((".", ":")) or f"{name}(" in text}
    assert no_sentence == {}


def test_about_30_names_stand_at_the_top():
    assert len(slc.__all__) <= 33


def test_explained_arguments_exist():
    explained = {name: documented(member) for name, member in MEMBERS.items() if callable(member)}
    unknown = {name: names - parameters(MEMBERS[name]) for name, names in explained.items() if names}
    assert {name: names for name, names in unknown.items() if names} == {}
    assert sum(map(len, explained.values())) > 100  # so they were read


def test_parameters_of_functions_are_explained_unless_their_names_say_it():
    functions = {name: public for name, public in PUBLIC.items() if inspect.isfunction(public)}
    unexplained = {name: parameters(each) - documented(each) - KNOWN_PARAMETERS for name, each in functions.items()}
    assert {name: names for name, names in unexplained.items() if names} == {}
    used = set().union(*(parameters(each) - documented(each) for each in functions.values()))
    assert used >= KNOWN_PARAMETERS  # no name is excused that need not be
