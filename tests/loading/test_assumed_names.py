"""A name that a published file left open is called assumed in the messages that come later."""

import warnings

import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.loading.formats import facts
from tests.loading.foreign_files import LAYOUTS, WIDTH
from tests.models.small_models import random_hooked_transformer


def test_a_message_about_assumed_names_says_that_they_are_assumed(tmp_path, monkeypatch):
    """The pair is refused for what it is not, not for what the file never said."""
    monkeypatch.setattr(facts, "PAPER_WIDTHS", (WIDTH, WIDTH))
    models = [random_hooked_transformer(WIDTH, seed=seed) for seed in (1, 2)]
    path = next(iter(LAYOUTS.values())).write(tmp_path)
    tokens = torch.zeros(1, 3, dtype=torch.long)

    def messages(pair, **options):
        with warnings.catch_warnings(action="ignore"):
            crosscoder = slc.load(path, **options)
        for use in (
            lambda: slc.diagnose(crosscoder, slc.EvalData(pair=pair, tokens=tokens)),
            lambda: slc.patched(pair, crosscoder, [0], "ablate").__enter__(),
            lambda: slc.causal.splice_evals(crosscoder, pair, tokens),
        ):
            with pytest.raises(ValueError) as raised:  # noqa: PT011  (the texts are compared below)
                use()
            yield str(raised.value)

    named = slc.HookedModelPair(*models, model_names=("a", "b"))
    assert set(messages(named)) == {
        "google/gemma-2-2b and google/gemma-2-2b-it were assumed, as the crosscoder's file names no models, but the "
        "pair is a and b. If it was trained on the pair, load it with slc.load(..., model_names=('a', 'b'))."
    }
    assert all("was trained on c and d, but" in text for text in messages(named, model_names=("c", "d")))
    assumed = "The hook 'blocks.13.hook_resid_post' was assumed, as the crosscoder's file names none"
    assert all(text.startswith(assumed) for text in messages(named, model_names=("a", "b")))
    known = {"model_names": ("a", "b"), "hook_name": "blocks.13.hook_resid_post"}
    assert all("no common hook 'blocks.13" in text for text in messages(named, **known))
