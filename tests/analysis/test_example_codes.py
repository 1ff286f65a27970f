"""Codes of each model alone on the tokens of examples, by the definition of the swap readout."""

import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.analysis.use.example_codes import example_codes
from tests.analysis.conftest import relu_crosscoder
from tests.browser import Browser, needs_chromium
from tests.models.small_models import random_hooked_transformer, some_tokens
from tests.reference import use as ref

WIDTH, HOOK, D_SAE, DEAD = 8, "blocks.0.hook_resid_post", 6, 5
TOKENS = some_tokens(n_prompts=7, n_pos=9)
KEEP = torch.rand(TOKENS.shape, generator=torch.Generator().manual_seed(4)) < 0.8


def family(n_models, folder, scales=None):
    """A pair or a family, a crosscoder of it with latents of one model alone, its data and its examples."""
    pair = slc.HookedModelPair(*[random_hooked_transformer(WIDTH, seed=seed) for seed in range(n_models)])
    generator = torch.Generator().manual_seed(1)
    d_in = n_models * WIDTH
    W_dec, W_enc = (torch.randn(*shape, generator=generator) for shape in ((D_SAE, d_in), (d_in, D_SAE)))
    W_dec[0, WIDTH:], W_dec[1, :WIDTH], W_dec[1, 2 * WIDTH :] = 0, 0, 0
    b_enc = torch.zeros(D_SAE).index_fill(0, torch.tensor([DEAD]), -1e4)
    crosscoder = relu_crosscoder(W_dec, None, 4 * W_enc, b_enc, scales, (WIDTH,) * n_models)
    crosscoder.cfg.metadata.hook_name = HOOK
    data = slc.EvalData(pair=pair, tokens=TOKENS, token_mask=KEEP, batch_size=2, max_norm_ratio=None)
    examples = slc.analysis.collect_examples(
        crosscoder, data, folder / "e", n_top=3, n_quantiles=2, n_per_quantile=2, window=(3, 2)
    )
    return pair, crosscoder, data, examples


def reference_codes(pair, crosscoder):
    """Codes of every model alone by the definition, (model, token, latent), on the tokens of the mask."""
    rows = pair.activations(TOKENS, HOOK).detach().double()[KEEP]
    n = crosscoder.layout.n_models
    tokens = [[row[m * WIDTH : (m + 1) * WIDTH] for m in range(n)] for row in rows.tolist()]
    encoders = [part.tolist() for part in crosscoder.encoders]
    weights = (encoders, crosscoder.b_enc.tolist(), crosscoder.thresholds.tolist())
    means = [ref.mean([token[m] for token in tokens]) for m in range(n)]
    mean_code = ref.mean([ref.code(token, *weights) for token in tokens])
    own = [([m], crosscoder.decoders[m].tolist(), mean_code) if m < 2 else None for m in range(n)]
    scales = crosscoder.activation_scales.tolist()
    return [[ref.alone(token, m, means, scales, *weights, own[m]) for token in tokens] for m in range(n)]


@pytest.mark.parametrize(("n_models", "scales"), [(2, None), (2, (1.0, 2.5)), (3, None)])
def test_codes_on_examples_are_those_of_the_definition(tmp_path, n_models, scales):
    pair, crosscoder, data, examples = family(n_models, tmp_path, scales)
    codes = example_codes(crosscoder, data, examples)
    expected = reference_codes(pair, crosscoder)
    row_of = {place: row for row, place in enumerate(KEEP.flatten().nonzero().flatten().tolist())}
    n_checked = 0
    for latent in range(D_SAE):
        found = examples[latent]
        for example in (*found.top, *(each for band in found.quantiles for each in band)):
            read = codes.of(latent, example)
            first = example.prompt * TOKENS.shape[1] + example.position - example.peak
            for i, score in enumerate(example.scores.tolist()):
                if first + i not in row_of:
                    assert score != score
                    assert read[i].isnan().all()
                    continue
                by_model = [of_model[row_of[first + i]][latent] for of_model in expected]
                assert read[i].tolist() == pytest.approx(by_model, rel=1e-4, abs=1e-5)
                n_checked += sum(code > 0 for code in by_model)
    assert n_checked > 100
    assert examples[DEAD].top == ()


def test_batches_of_any_size_give_the_same_codes(tmp_path):
    _, crosscoder, data, examples = family(2, tmp_path)
    whole = slc.EvalData(pair=data.pair, tokens=TOKENS, token_mask=KEEP, batch_size=7, max_norm_ratio=None)
    first, second = (example_codes(crosscoder, each, examples) for each in (data, whole))
    torch.testing.assert_close(first.keys, second.keys)
    torch.testing.assert_close(first.values, second.values)
    assert (first.keys.diff() > 0).all()
    assert (first.values > 0).any(dim=1).all()


def test_explore_with_the_use_shows_them(tmp_path):
    _, crosscoder, data, examples = family(2, tmp_path)
    use = slc.latent_use(crosscoder, data, min_active=1)
    diagnosis = slc.diagnose(crosscoder, data, min_active=1)
    found = slc.explore(crosscoder, data, diagnosis, examples=examples, use=use)
    (shown, *_) = found[2].top
    torch.testing.assert_close(shown.alone, found.codes.of(2, shown.example), equal_nan=True)
    assert shown.alone.shape == (len(shown.texts), 2)
    assert slc.explore(crosscoder, data, diagnosis, examples=examples)[2].top[0].alone is None


@needs_chromium
def test_a_familys_page_has_a_line_per_model_and_names_the_two_that_are_compared(tmp_path):
    _, crosscoder, data, examples = family(3, tmp_path)
    two = ("model_0", "model_2")
    groups = slc.data.TokenGroups(TOKENS % 2, ("even", "odd"))
    use = slc.latent_use(crosscoder, data, groups=groups, models=two, min_active=1)
    diagnosis = slc.diagnose(crosscoder, data, models=two, min_active=1)
    found = slc.explore(crosscoder, data, diagnosis, examples=examples, use=use)
    path = slc.write_explorer({"family": found}, tmp_path / "e.html")
    with Browser() as browser:
        browser.open(f"{path.as_uri()}#latent=2")
        page = browser.evaluate("document.querySelector('article').innerText")
        lines = browser.evaluate("[...document.querySelectorAll('.strip i')].map((line) => line.className)")
        assert browser.errors == []
    assert {*lines} == {"share-0", "share-1", "share-2"}
    assert "model_2 only" in page
    assert "model_1 only" not in page
    assert "share of strongly active tokens in each group, model_2" in page
    assert "in each group, model_1" not in page
