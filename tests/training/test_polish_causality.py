"""Polish keeps weak causality: what may not be read or written stays exactly 0, and a latent reads where it starts."""

from functools import cache

import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.crosscoders.causality import WeakCausality
from sae_lens_crosscoder.crosscoders.sparse_step.pairs import pairs_of
from sae_lens_crosscoder.stacking import StackedLayout
from sae_lens_crosscoder.synthetic import LayeredWorld, layers_found
from sae_lens_crosscoder.synthetic.null_streams import shuffled_batches
from sae_lens_crosscoder.training.polishing.latent_hooks import LatentHooks
from sae_lens_crosscoder.training.polishing.nesting import Nesting
from sae_lens_crosscoder.training.polishing.reading import reading_rows
from sae_lens_crosscoder.training.polishing.refit import refit_decoder
from sae_lens_crosscoder.training.polishing.rounds import PolishState, polish_round
from tests.reference import causality as ref_causality
from tests.reference import pursuit as ref_pursuit
from tests.reference import reading as ref_reading
from tests.training.test_reading import NO_NESTING

N_HOOKS, WIDTHS, D_SAE = 3, (2, 1, 2, 1, 2, 1), 9  # of two models
HOOKS = LatentHooks(StackedLayout(WIDTHS, ("early", "middle", "late")), WeakCausality.over(N_HOOKS, D_SAE))
READS, WRITES = ref_causality.masks(D_SAE, WIDTHS, N_HOOKS)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def some_codes(n_tokens=60):
    codes = (draw(n_tokens, D_SAE, seed=3) - 0.6).clamp(min=0)
    codes[1:, 4] = 0  # on too few tokens
    return codes


def masked_decoder():
    return draw(D_SAE, sum(WIDTHS), seed=5) * torch.tensor(WRITES, dtype=torch.float64)


def test_the_refit_is_least_squares_over_the_weights_that_may_be_written():
    codes, decoder, x = some_codes(), masked_decoder(), draw(60, sum(WIDTHS), seed=4) + 1
    W_dec, b_dec = refit_decoder(x, *pairs_of(codes), decoder, HOOKS)
    expected_W, expected_b = ref_pursuit.refit(x.tolist(), codes.tolist(), decoder.tolist(), writes=WRITES)
    torch.testing.assert_close(W_dec, torch.tensor(expected_W, dtype=torch.float64), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(b_dec, torch.tensor(expected_b, dtype=torch.float64), rtol=1e-5, atol=1e-6)
    assert (W_dec[torch.tensor(WRITES) == 0] == 0).all()
    free = ref_pursuit.refit(x.tolist(), codes.tolist(), decoder.tolist())[0]
    assert not torch.allclose(W_dec, torch.tensor(free, dtype=torch.float64), atol=0.01)


def test_reading_rows_are_the_regression_on_what_a_latent_reads():
    codes, decoder = some_codes(400), masked_decoder()
    x = codes @ decoder + 0.1 * draw(400, sum(WIDTHS), seed=6)
    rows, hidden = reading_rows(x, *pairs_of(codes), decoder, HOOKS, NO_NESTING)
    for latent, reads in enumerate(READS):
        at = [i for i, may in enumerate(reads) if may]
        whole = sum(value * value for value in decoder[latent].tolist())
        (expected,) = ref_reading.reading_rows(
            x[:, at].tolist(), codes[:, [latent]].tolist(), decoder[[latent]][:, at].tolist(), along_over=whole
        )
        assert rows[latent, at].tolist() == pytest.approx(expected, rel=1e-6, abs=1e-8)
    assert (rows[torch.tensor(READS) == 0] == 0).all()
    assert hidden.dtype == torch.bool


def test_an_atom_whose_concept_starts_after_its_hook_is_hidden_and_chosen_by_no_token():
    world = LayeredWorld(n_per_layer=2, n_layers=3, d_model=8)
    hooks = LatentHooks(world.layout, WeakCausality.over(3, 6))
    rows = world.directions[[0, 4, 2, 3, 1, 5]]  # atom 1 reads the first hook, its concept starts at the last
    rows = rows + 0.05 * torch.nn.functional.normalize(torch.ones_like(rows), dim=1)
    state = PolishState(hooks.without_unwritten(rows.clone()), torch.zeros(24), hooks)
    for seed in range(2):
        polish_round(state, world.sample(3000, seed).activations, 0.24, 8, "k", 6)
        seen = state.is_hidden.tolist()
        assert seen == [False, seed == 0, False, False, False, False]


def test_a_direction_starts_at_the_first_hook_that_is_more_than_noise():
    world = LayeredWorld(n_per_layer=3, n_layers=4, d_model=8)
    hooks = LatentHooks(world.layout, WeakCausality.over(4, 12))
    noisy = world.directions + 0.02 * draw(*world.directions.shape).float()
    assert hooks.starts(noisy).tolist() == world.starts.tolist()
    pair = StackedLayout((1,) * 4, ("early", "late"))  # the chat model alone, early
    of_chat = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 1.0, 0.0, 1.0]])
    assert LatentHooks(pair, WeakCausality.over(2, 4)).starts(of_chat).tolist() == [0, 1]


def test_a_child_takes_nothing_of_a_parent_that_writes_where_it_may_not():
    parent, child = torch.tensor([0, 8, 3]), torch.tensor([8, 0, 4])
    allowed = HOOKS.allowed(Nesting(parent, child, torch.tensor([1.0, 2.0, 3.0])))
    assert [entries.tolist() for entries in allowed] == [[8, 3], [0, 4], [2.0, 3.0]]


@pytest.mark.parametrize("stop", ["k", "noise"])
def test_no_round_writes_a_weight_that_must_be_zero(stop):
    """On tokens with nested concepts that start at other layers, from a decoder of noise."""
    x = draw(600, 4, seed=1).clamp(min=0) @ draw(4, sum(WIDTHS), seed=2)
    x[300:] += draw(300, 1, seed=7).abs() * draw(sum(WIDTHS), seed=8)
    state = PolishState(masked_decoder(), torch.zeros(sum(WIDTHS), dtype=torch.float64), HOOKS)
    for _ in range(6):
        before = state.W_dec.clone()
        polish_round(state, x, 2, 6, stop, D_SAE)
        assert not torch.equal(state.W_dec, before)
        assert (state.W_dec[torch.tensor(WRITES) == 0] == 0).all()
        assert (state.W_enc[torch.tensor(READS) == 0] == 0).all()


@cache
def world_and_pool():
    world = LayeredWorld(n_per_layer=6, n_layers=3, d_model=16, firing_probability=0.06)
    return world, world.sample(16_000, seed=1).activations


def trained(n_steps=120, **fields):
    world, pool = world_and_pool()
    torch.manual_seed(0)
    cfg = slc.BatchTopKCrosscoderTrainingConfig(
        d_models=world.layout.d_models, hook_names=world.layout.hook_names, causality="weak", d_sae=36, k=1.1, **fields
    )
    trainer_cfg = slc.CrosscoderTrainerConfig(
        total_training_samples=n_steps * 128, train_batch_size_samples=128, lr=1e-2, lr_warm_up_steps=5,
        lr_decay_steps=n_steps // 5, dead_feature_window=20, log_frequency=n_steps, max_norm_ratio=None,
    )  # fmt: skip
    crosscoder = slc.BatchTopKTrainingCrosscoder(cfg)
    return slc.CrosscoderTrainer(trainer_cfg, crosscoder, shuffled_batches(pool, 128, seed=0)).fit()


def layers_of(crosscoder, folder):
    """The table of concepts, after a check that the weights are 0 exactly where the loops say so."""
    world, _ = world_and_pool()
    for rows, mask in zip((crosscoder.W_enc.T, crosscoder.W_dec), ref_causality.masks(36, (16,) * 3, 3), strict=True):
        assert (rows[torch.tensor(mask) == 0] == 0).all()
    crosscoder.save_inference_model(folder)
    return layers_found(slc.load(folder), world)


def test_after_a_polish_more_concepts_are_found_all_at_the_layer_at_which_they_start(tmp_path):
    crosscoder, (_, pool) = trained(), world_and_pool()
    before = layers_of(crosscoder, tmp_path / "before")
    cfg = slc.training.PolishConfig(lr=2e-3, stop="noise", n_tokens_per_round=8192, n_steps=150, max_norm_ratio=None)
    polished = slc.training.polish(crosscoder, shuffled_batches(pool, 128, seed=5), cfg)
    after = layers_of(polished, tmp_path / "after")
    assert before.found.mean() < 0.8
    assert after.found.mean() >= 0.95
    assert after.right[after.found].all()
    # The encoder finds them on tokens, too.
    assert explained(polished) > explained(crosscoder)


@torch.no_grad()
def explained(crosscoder):
    _, pool = world_and_pool()
    return 1 - float((crosscoder(pool) - pool).square().sum() / (pool - pool.mean(dim=0)).square().sum())


def test_a_polish_in_training_keeps_the_zeros(tmp_path):
    table = layers_of(trained(polish_at=0.6, polish_tokens_per_round=4096), tmp_path)
    assert table.found.mean() >= 0.8
    assert table.right[table.found].mean() >= 0.95
