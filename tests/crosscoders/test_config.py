"""Widths are derived, nonsense is refused before anything runs, nothing is dropped, every field is read."""

import json
from dataclasses import fields

import pytest
import torch
from sae_lens import SAEConfig, TrainingSAEConfig

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.crosscoders.config import CrosscoderConfigBase
from tests.crosscoders.conftest import batchtopk_crosscoder, l1_crosscoder, stacked_batch, step

BTK = slc.BatchTopKCrosscoderTrainingConfig
L1 = slc.L1CrosscoderTrainingConfig


@pytest.mark.parametrize(
    ("given", "d_models", "d_model"),
    [
        ({"d_model": 8}, (8, 8), 8),
        ({"d_in": 16}, (8, 8), 8),
        ({"d_models": [6, 4]}, (6, 4), None),
        ({"d_models": (4, 4, 4), "d_in": 12}, (4, 4, 4), 4),
    ],
)
def test_widths_are_derived_from_what_is_given(given, d_models, d_model):
    cfg = BTK(d_sae=32, k=2, **given)
    assert (cfg.d_models, cfg.d_in, cfg.d_model) == (d_models, sum(d_models), d_model)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "widths are missing"),
        ({"d_in": 7}, "d_in=7 is odd"),
        ({"d_model": 8, "d_in": 20}, r"do not add up: d_in=20, but d_models=\(8, 8\) sum to 16"),
        ({"d_model": 8, "d_models": (8, 4)}, r"d_model=8 disagrees with d_models=\(8, 4\)"),
        ({"d_models": (8, 0)}, "at least 1 wide"),
        ({"d_model": 8, "d_sae": 0}, "d_sae=0 must be at least 1"),
        ({"d_model": 8, "score": "l3"}, "score='l3' is not one of"),
        ({"d_model": 8, "apply_b_dec_to_input": True}, "encoder reads the raw activations"),
        ({"d_model": 8, "normalize_activations": "layer_norm"}, "activation_scaling='per_model'"),
        ({"d_model": 8, "normalize_activations": "covariance_whitening"}, "mixes the models' coordinates"),
        ({"d_model": 8, "reshape_activations": "hook_z"}, "interleave the models' heads"),
        ({"d_model": 8, "activation_scales": (1.0,)}, "one positive factor for each of 2 sources"),
        ({"d_model": 8, "activation_scales": (1.0, 0.0)}, "one positive factor"),
        ({"d_model": 8, "initialisation": "pairs"}, "initialisation='pairs' is not one of"),
        ({"d_model": 8, "reconstruction_loss": "l2"}, "reconstruction_loss='l2' is not one of"),
        ({"d_model": 8, "activation_scaling": "joint"}, "activation_scaling='joint' is not one of"),
        ({"d_model": 8, "decoder_bias_init": "mean"}, "decoder_bias_init='mean' is not one of"),
        ({"d_model": 8, "decoder_init_norm": None}, "decoder_init_norm=None must be a positive number"),
        ({"d_model": 8, "gradient_clip_norm": 0.0}, "gradient_clip_norm=0.0 must be positive"),
        ({"d_model": 8, "k": 33}, "k=33 must be above 0 and at most d_sae=32"),
        ({"d_model": 8, "k": 0}, "k=0 must be above 0"),
        ({"d_model": 8, "k_max": 4}, "belong together"),
        ({"d_model": 8, "k_max": 1, "k_anneal_steps": 5}, "k_max=1 must lie between k=2"),
        ({"d_model": 8, "threshold_rule": "ema"}, "threshold_rule='ema' is not one of"),
        ({"d_model": 8, "topk_threshold_lr": 0.0}, r"must lie in \(0, 1\]"),
        ({"d_model": 8, "aux_loss_coefficient": -1.0}, "must not be negative"),
        ({"d_model": 8, "rescale_acts_by_decoder_norm": False}, "use score='none'"),
        ({"d_model": 8, "use_sparse_activations": True}, "leave it False"),
    ],
)
def test_nonsense_is_refused_by_name(given, message):
    # A type checker refuses some of these as well; users run without one.
    given = {"d_sae": 32, "k": 2} | given
    with pytest.raises(ValueError, match=message):
        BTK.__post_init__(_unchecked(BTK, given))


@pytest.mark.parametrize(
    ("given", "message"),
    [({"lp_norm": 2.0}, "leave lp_norm at 1"), ({"l1_coefficient": -0.1}, "must not be negative")],
)
def test_l1_nonsense_is_refused_by_name(given, message):
    with pytest.raises(ValueError, match=message):
        L1(d_model=8, d_sae=32, **given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"score_norm": "l3"}, "score_norm='l3' is not one of"),
        ({"activation_means": [[0.0, 0.0]]}, r"one finite vector for each model, of widths \(2, 1\)"),
        ({"activation_means": [[0.0], [0.0, 0.0]]}, r"vectors of widths \(1, 2\)"),
        ({"activation_means": [[0.0, float("nan")], [0.0]]}, "activation_means=.*finite"),
    ],
)
def test_inference_nonsense_is_refused_by_name(given, message):
    with pytest.raises(ValueError, match=message):
        slc.ReLUCrosscoderConfig.__post_init__(
            _unchecked(slc.ReLUCrosscoderConfig, {"d_models": (2, 1), "d_sae": 3} | given)
        )


def test_a_score_norm_and_means_survive_a_dictionary():
    cfg = slc.ReLUCrosscoderConfig(d_models=(2, 1), d_sae=3, score_norm="mixed", activation_means=[[1.0, 2.0], [3.0]])
    again = SAEConfig.from_dict(json.loads(json.dumps(cfg.to_dict())))
    assert (again.score, again.score_norm, again.activation_means) == ("sum", "mixed", ((1.0, 2.0), (3.0,)))
    assert slc.ReLUCrosscoderConfig(d_model=2, d_sae=3, score="l2").score_norm == "l2"


def _unchecked(cls, given):
    """An instance whose fields are set but not yet checked, so that the message is ours, not the type checker's."""
    cfg = object.__new__(cls)
    for f in fields(cls):
        default = f.default_factory() if callable(f.default_factory) else f.default
        object.__setattr__(cfg, f.name, given.get(f.name, default))
    return cfg


def test_paper_defaults():
    batchtopk, l1 = BTK(d_model=4, d_sae=200), L1(d_model=4, d_sae=200)
    assert (batchtopk.k, batchtopk.score, batchtopk.aux_loss_coefficient) == (100, "sum", 1 / 32)
    assert (batchtopk.decoder_init_norm, batchtopk.decoder_bias_init) == (1.0, "geometric_median")
    assert (batchtopk.gradient_clip_norm, batchtopk.topk_threshold_lr) == (1.0, 0.001)
    assert (l1.l1_coefficient, l1.decoder_init_norm, l1.decoder_bias_init) == (4.1e-2, 0.05, "zeros")
    assert (l1.gradient_clip_norm, l1.reconstruction_loss) == (None, "l2_norm")
    trainer = slc.CrosscoderTrainerConfig(total_training_samples=10**8)
    assert (trainer.train_batch_size_samples, trainer.lr, trainer.lr_warm_up_steps) == (2048, 1e-4, 1000)
    assert trainer.dead_feature_window == 4883  # 10 million tokens


@pytest.mark.parametrize(
    "cfg", [BTK(d_models=(6, 4), d_sae=32, k=2), L1(d_model=8, d_sae=32), slc.ReLUCrosscoderConfig(d_model=8, d_sae=4)]
)
def test_a_config_survives_its_dictionary(cfg):
    host = TrainingSAEConfig if isinstance(cfg, TrainingSAEConfig) else SAEConfig
    again = host.from_dict(cfg.to_dict())
    assert type(again) is type(cfg)
    assert {f.name: getattr(again, f.name) for f in fields(cfg) if f.name != "metadata"} == {
        f.name: getattr(cfg, f.name) for f in fields(cfg) if f.name != "metadata"
    }


def test_an_unknown_key_is_named_with_its_nearest_field():
    with pytest.raises(ValueError, match=r"no field 'l1_coeficient'. Did you mean 'l1_coefficient'\?"):
        L1.from_dict({**L1(d_model=8, d_sae=32).to_dict(), "l1_coeficient": 1.0})


def test_every_loss_coefficient_moves_a_gradient():
    x, dead = stacked_batch(), torch.arange(11) < 3

    def gradient(crosscoder, l1=0.3):
        crosscoder.training_forward_pass(step(x, l1=l1, dead=dead)).loss.backward()
        return crosscoder.W_dec.grad

    assert not torch.equal(gradient(l1_crosscoder(), l1=0.3), gradient(l1_crosscoder(), l1=0.4))
    coefficients = (0.0, 0.1, 0.2)
    grads = [gradient(batchtopk_crosscoder(aux_loss_coefficient=alpha)) for alpha in coefficients]
    assert not torch.equal(grads[0], grads[1])
    # Linear in alpha, in the rows of dead latents alone, which nothing else moves when they are not selected.
    torch.testing.assert_close(grads[2] - grads[0], 2 * (grads[1] - grads[0]))


@pytest.mark.parametrize(
    ("cls", "name", "other"),
    [
        (L1, "score", "l2"),
        (L1, "reconstruction_loss", "mse"),
        (BTK, "score", "max"),
        (BTK, "reconstruction_loss", "mse"),
        (BTK, "k", 1.0),
        (BTK, "aux_loss_coefficient", 0.5),
        (BTK, "activation_scaling", "per_model"),
        (BTK, "decoder_bias_init", "geometric_median"),
        (BTK, "topk_threshold_lr", 1.0),
        (BTK, "initialisation", "independent"),
        (BTK, "decoder_init_norm", 0.3),
    ],
)
def test_every_training_field_changes_what_is_trained(cls, name, other):
    x, dead = 3 * stacked_batch(d_in=8) + 1, torch.arange(11) < 3

    def outcome(**fields):
        torch.manual_seed(0)
        fields = ({"k": 2.5, "decoder_bias_init": "zeros"} if cls is BTK else {}) | fields
        sae_class = slc.BatchTopKTrainingCrosscoder if cls is BTK else slc.L1TrainingCrosscoder
        crosscoder = sae_class(cls(d_model=4, d_sae=11, dtype="float64", **fields))
        for batch in (x, 2 * x):
            output = crosscoder.training_forward_pass(step(batch, dead=dead))
        threshold = crosscoder.topk_threshold if cls is BTK else output.loss
        return output.loss.item(), threshold.item()

    assert outcome(**{name: other}) != outcome()


def test_every_inference_field_is_one_of_the_training_fields():
    """So that saving copies it, instead of falling back to a default; two are fixed while training."""
    shared = {f.name for f in fields(CrosscoderConfigBase)}
    partition = {"n_base_exclusive", "n_chat_exclusive"}
    for cfg_class, more in ((slc.ReLUCrosscoderConfig, set()), (slc.JumpReLUCrosscoderConfig, partition)):
        assert {f.name for f in fields(cfg_class)} == shared | {"score_norm", "activation_means"} | more
    assert partition <= {f.name for f in fields(slc.BatchTopKCrosscoderTrainingConfig)}
    cfg = L1(d_model=8, d_sae=32, score="l2").get_inference_sae_cfg_dict()
    assert (cfg["score"], cfg["score_norm"], cfg["activation_means"]) == ("l2", "l2", None)
    for cfg_class in (L1, BTK):
        assert shared <= {f.name for f in fields(cfg_class)}
