"""A weakly causal latent reads one hook and writes that and later ones, exactly, and so says where a concept starts."""

import copy

import pytest
import torch
from sae_lens import SAETrainer

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.crosscoders.causality import WeakCausality
from sae_lens_crosscoder.synthetic import LayeredWorld, layers_found
from sae_lens_crosscoder.synthetic.null_streams import shuffled_batches
from tests.crosscoders.conftest import (
    D_SAE,
    STEP,
    as_lists,
    batchtopk_crosscoder,
    dense,
    l1_crosscoder,
    stacked_batch,
    step,
)  # fmt: skip
from tests.crosscoders.test_architectures import WIDTHS as NESTED
from tests.crosscoders.test_architectures import jumprelu, matryoshka
from tests.reference import causality as ref_causality
from tests.reference import crosscoder as ref

HOOKS = tuple(f"blocks.{layer}.hook_resid_post" for layer in (1, 4, 6))
WIDTHS = (2, 3, 2, 1, 2, 3)  # of two models
WEAK = {"d_models": WIDTHS, "hook_names": HOOKS, "causality": "weak"}
both_steps = pytest.mark.usefixtures("each_training_step")
every_kind = pytest.mark.parametrize("build", [batchtopk_crosscoder, l1_crosscoder, jumprelu, matryoshka])
LEVELS = (*NESTED, D_SAE)


def masks(build=None):
    """Of `W_enc` and `W_dec`, in their shapes."""
    rows = ref_causality.masks(D_SAE, WIDTHS, len(HOOKS), LEVELS if build is matryoshka else None)
    reads, writes = (torch.tensor(mask, dtype=torch.float64) for mask in rows)
    return {"W_enc": reads.T, "W_dec": writes}


EXTRA = {jumprelu: {"jumprelu_sparsity_loss_mode": "tanh", "pre_act_loss_coefficient": 0.1}}


def weakly_causal(build, **fields):
    """Random weights where the reference allows them."""
    crosscoder = build(**(WEAK | fields))
    with torch.no_grad():
        for name, mask in masks(build).items():
            getattr(crosscoder, name).mul_(mask)
    return crosscoder


def batch():
    return stacked_batch(d_in=sum(WIDTHS))


def trainer_of(world, steps=30, batch_size=64, **fields):
    torch.manual_seed(0)
    settings = {"d_models": world.layout.d_models, "hook_names": world.layout.hook_names, "causality": "weak", "k": 2}
    cfg = slc.BatchTopKCrosscoderTrainingConfig(**(settings | STEP | fields))
    trainer_cfg = slc.CrosscoderTrainerConfig(
        total_training_samples=steps * batch_size, train_batch_size_samples=batch_size, lr=1e-2, lr_warm_up_steps=5,
        lr_decay_steps=steps // 5, dead_feature_window=20, log_frequency=steps, max_norm_ratio=None,
    )  # fmt: skip
    batches = shuffled_batches(world.sample(2048, seed=1).activations, batch_size, seed=0)
    return slc.CrosscoderTrainer(trainer_cfg, slc.BatchTopKTrainingCrosscoder(cfg), batches)


@every_kind
def test_a_new_crosscoder_has_weights_exactly_where_the_loops_allow_them(build):
    built = build(**WEAK)
    crosscoder = type(built)(built.cfg)
    for name, mask in masks(build).items():
        assert torch.equal(getattr(crosscoder, name) != 0, mask != 0), name
    levels = LEVELS if build is matryoshka else (D_SAE,)
    expected = [ref_causality.hook_of_nested(latent, levels, len(HOOKS)) for latent in range(D_SAE)]
    assert crosscoder.hooks_read.tolist() == expected


@both_steps
def test_latents_and_reconstruction_are_those_of_loops_over_what_may_be_read_and_written():
    crosscoder, x = weakly_causal(l1_crosscoder), batch()
    output = crosscoder.training_forward_pass(step(x))
    reads, writes = ref_causality.masks(D_SAE, WIDTHS, len(HOOKS))
    w = as_lists(crosscoder)
    for rows, mask in ((w.encoders, reads), (w.decoders, writes)):
        flat = [[value for part in row for value in part] for row in rows]
        assert all(value == 0 for row, allowed in zip(flat, mask, strict=True)
                   for value, a in zip(row, allowed, strict=True) if a == 0)  # fmt: skip
    f = [ref.relu(ref.pre_activations(h, w.encoders, w.b_enc)) for h in w.tokens(x)]
    torch.testing.assert_close(dense(output.feature_acts), torch.tensor(f, dtype=torch.float64))
    h_hat = torch.tensor([[v for part in ref.reconstruct(row, w.decoders, w.b_dec) for v in part] for row in f])
    torch.testing.assert_close(output.sae_out.float(), h_hat, rtol=1e-5, atol=1e-6)


@both_steps
@every_kind
@pytest.mark.parametrize("n_dead", [0, 8])
def test_the_gradient_is_exactly_zero_where_nothing_may_be_and_elsewhere_that_of_the_loss(build, n_dead):
    crosscoder, x, dead = weakly_causal(build, **EXTRA.get(build, {})), batch(), torch.arange(D_SAE) < n_dead
    crosscoder.training_forward_pass(step(x, dead=dead)).loss.backward()
    free = copy.deepcopy(crosscoder)
    free.trainable_rows = lambda rows, confinement: rows
    free.zero_grad()
    free.training_forward_pass(step(x, dead=dead)).loss.backward()
    for name, mask in masks(build).items():
        gradient, plain = getattr(crosscoder, name).grad, getattr(free, name).grad
        assert (gradient[mask == 0] == 0).all(), name
        torch.testing.assert_close(gradient, plain * mask, rtol=1e-12, atol=1e-12)
    assert (free.W_enc.grad[masks(build)["W_enc"] == 0] != 0).any()


@both_steps
@pytest.mark.parametrize("trainer_class", [slc.CrosscoderTrainer, SAETrainer])
def test_weights_stay_exactly_zero_with_adam_clipping_and_revival(trainer_class):
    world = LayeredWorld(n_per_layer=3, n_layers=3, d_model=6)
    trainer = trainer_of(world, d_sae=12)
    if trainer_class is SAETrainer:
        trainer = SAETrainer(trainer.cfg, trainer.sae, trainer.data_provider)
    trainer.fit()
    reads, writes = ref_causality.masks(12, world.layout.d_models, 3)
    assert torch.equal(trainer.sae.W_enc.T != 0, torch.tensor(reads) != 0)
    assert torch.equal(trainer.sae.W_dec != 0, torch.tensor(writes) != 0)


def test_the_sparse_step_trains_the_crosscoder_of_the_dense_step(monkeypatch):
    states = []
    for training_step in ("sparse", "dense"):
        monkeypatch.setitem(STEP, "training_step", training_step)
        trainer = trainer_of(LayeredWorld(n_per_layer=3, n_layers=3, d_model=6), d_sae=12, dtype="float64")
        trainer.fit()
        states.append(trainer.sae.state_dict())
    for name, expected in states[1].items():
        torch.testing.assert_close(states[0][name], expected, rtol=1e-6, atol=1e-8, msg=name)


@pytest.mark.parametrize(("n_hooks", "d_sae"), [(2, 8), (3, 12), (4, 12)])
def test_shards_hold_the_groups_of_their_own_latents(n_hooks, d_sae):
    whole = WeakCausality.over(n_hooks, d_sae)
    expected = [ref_causality.hook_of(latent, d_sae, n_hooks) for latent in range(d_sae)]
    for n_shards in (1, 2, 4):
        n = d_sae // n_shards
        parts = [whole.of_rows(first, n).hooks_read() for first in range(0, d_sae, n)]
        assert torch.cat(parts).tolist() == expected
    hooks = tuple(f"blocks.{layer}.hook_mlp_out" for layer in range(n_hooks))
    cfg = slc.BatchTopKCrosscoderTrainingConfig(
        d_models=(2,) * n_hooks, hook_names=hooks, d_sae=d_sae // 2, k=1, causality="weak"
    )
    assert cfg.weak_causality(shard=1, n_shards=2) == whole.of_rows(d_sae // 2, d_sae // 2)


def test_concepts_are_found_at_the_layer_at_which_they_start(tmp_path):
    world = LayeredWorld(n_per_layer=6, n_layers=3, d_model=16, firing_probability=0.06)
    found = {}
    for causality in ("weak", "acausal"):
        trainer = trainer_of(world, steps=200, batch_size=128, d_sae=36, k=1.1, causality=causality)
        trainer.fit().save_inference_model(tmp_path / causality)
        crosscoder = slc.load(tmp_path / causality)
        found[causality] = layers_found(crosscoder, world)
    weak, acausal = found["weak"], found["acausal"]
    assert weak.found.mean() >= 0.6
    assert weak.right[weak.found].mean() >= 0.95
    # Acausal latents of the same world read everywhere: their encoders do not say it.
    assert acausal.right[acausal.found].mean() < 0.9
    dead = trainer.history.iloc[-1]
    assert dead.n_dead == sum(dead[f"n_dead_{hook}"] for hook in world.layout.hook_names)


def test_what_breaks_the_rule_or_cannot_keep_it_is_refused(tmp_path):
    crosscoder = weakly_causal(batchtopk_crosscoder)
    crosscoder.save_model(tmp_path / "kept")
    weakly_causal(batchtopk_crosscoder).load_weights_from_checkpoint(tmp_path / "kept")
    for name, place, where in (("W_enc", (0, D_SAE - 1), "does not read"), ("W_dec", (D_SAE - 1, 0), "before the one")):
        broken = weakly_causal(batchtopk_crosscoder)
        with torch.no_grad():
            getattr(broken, name)[place] = 1e-30
        broken.save_model(tmp_path / name)
        with pytest.raises(ValueError, match=f"{name} is not 0 at hooks .*{where}"):
            weakly_causal(batchtopk_crosscoder).load_weights_from_checkpoint(tmp_path / name)
    common = {"d_models": WIDTHS, "hook_names": HOOKS, "causality": "weak", "d_sae": 12}
    with pytest.raises(ValueError, match="are in layers"):
        slc.BatchTopKCrosscoderTrainingConfig(**(common | {"hook_names": HOOKS[::-1]}), k=1)
    with pytest.raises(ValueError, match="needs several hooks"):
        slc.BatchTopKTrainingCrosscoder(
            slc.BatchTopKCrosscoderTrainingConfig(d_model=4, d_sae=8, k=1, causality="weak")
        )
