"""Thousands of training steps a test: run as users run them, without the type checks of every call in them."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def _unchecked(types_unchecked_in_the_module) -> None:
    pass
