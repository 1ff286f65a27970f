"""Every public function, with models of every class, gives a result or a ValueError that names what was wrong.

The odd inputs are: none (empty), all dead, of the wrong rank, of the wrong width, and of another class.
"""

import inspect

import pytest
import torch

import sae_lens_crosscoder as slc
from tests.house.public_calls import (
    CLASSES,
    NAMES,
    OF_FILES,
    OF_MODELS,
    OF_TENSORS,
    TOO_SMALL,
    UNSUPPORTED,
    Other,
    World,
    functions,
    odd_values,
    used_up,
)
from tests.house.public_methods import METHODS, NOT_CALLED, methods

FUNCTIONS = functions()
TRAINS = {"train_difference_sae", "changed"}  # and so need gradients
pytestmark = pytest.mark.usefixtures("unchecked_types")


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    return {name: World(name, tmp_path_factory.mktemp(name)) for name in CLASSES}


def outcome(name, arguments, method=None):
    """None for a result, or the ValueError; any other error fails the test."""
    try:
        with torch.set_grad_enabled(name in TRAINS):
            used_up((method or FUNCTIONS[name])(**arguments))
    except ValueError as error:
        return str(error)
    return None


def odd_cells(name, arguments, world, method=None):
    """Argument, kind and message of every odd call; a message of None is a result."""
    for argument, value in arguments.items():
        for kind, odd in odd_values(argument, value, world):
            if isinstance(odd, dict) and isinstance(value, slc.EvalData):
                fields = {"pair": world.pair, "tokens": world.tokens, "max_norm_ratio": None}
                try:
                    odd = slc.EvalData(**(fields | odd))
                except ValueError as error:
                    yield argument, kind, str(error)
                    continue
            yield argument, kind, outcome(name, arguments | {argument: odd}, method)


def is_named(argument, message, function):
    """True if a message names the argument, or another with which it does not go together."""
    words = NAMES.get(argument, (argument.removesuffix("s"),))
    clashes = "does not fit the other arguments" in message or "already contains another cache" in message
    return clashes or any(word in message.lower() for word in words) or argument in message


def test_every_public_function_is_in_the_table():
    """A new one has to join it, and so the law below."""
    without_arguments = {name for name, function in FUNCTIONS.items() if not inspect.signature(function).parameters}
    assert {*OF_MODELS, *OF_TENSORS, *OF_FILES, *without_arguments} == set(FUNCTIONS)
    assert len(OF_MODELS) + len(OF_TENSORS) + len(OF_FILES) == len({*OF_MODELS, *OF_TENSORS, *OF_FILES})


CALLS = [(name, each) for name in OF_MODELS for each in CLASSES] + [(name, CLASSES[0]) for name in OF_TENSORS]


@pytest.mark.parametrize(("name", "model_class"), CALLS)
def test_a_call_gives_a_result_or_names_the_argument_that_is_odd(worlds, name, model_class):
    world = worlds[model_class]
    arguments = (OF_MODELS | OF_TENSORS)[name](world)
    plain = outcome(name, arguments)
    refusals = TOO_SMALL | (UNSUPPORTED if model_class == "AutoModelForCausalLM" else {})
    assert plain is None if name not in refusals else plain.startswith(refusals[name])
    unnamed = [
        (argument, kind, message)
        for argument, kind, message in odd_cells(name, arguments, world)
        if message not in (None, plain) and not is_named(argument, message, name)
    ]
    assert unnamed == []


@pytest.mark.parametrize("name", sorted(OF_FILES))
def test_another_class_is_refused_by_the_name_of_the_argument(name):
    parameters = list(inspect.signature(FUNCTIONS[name]).parameters.values())
    needed = [each.name for each in parameters if each.default is each.empty and each.kind is not each.VAR_KEYWORD]
    needed = needed or [next(iter(parameters)).name]
    message = outcome(name, dict.fromkeys(needed, Other()))
    assert message is not None
    assert message.startswith((needed[0], f"{name} needs an inference crosscoder"))


def test_every_public_method_is_in_the_table_or_among_those_that_are_not_called():
    called = {name for name in methods() if not any(part in name for part in NOT_CALLED)}
    assert called == set(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_gives_a_result_or_names_the_argument_that_is_odd(worlds, name):
    world = worlds[CLASSES[0]]
    method, arguments = METHODS[name](world)
    assert outcome(name, arguments, method) is None
    unnamed = [
        (argument, kind, message)
        for argument, kind, message in odd_cells(name, arguments, world, method)
        if message is not None and not is_named(argument, message, name)
    ]
    assert unnamed == []
