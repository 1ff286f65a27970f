"""TopK, Matryoshka and JumpReLU crosscoders: their formulas, their saved form, and planted concepts that they find."""

import copy

import pytest
import torch
from sae_lens import SAE, SAETrainer, TrainingSAE
from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY
from sae_lens.saes.sae import TrainStepInput

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.crosscoders import (
    JumpReLUCrosscoderTrainingConfig,
    JumpReLUTrainingCrosscoder,
    MatryoshkaBatchTopKCrosscoderTrainingConfig,
    MatryoshkaBatchTopKTrainingCrosscoder,
    TopKCrosscoderTrainingConfig,
    TopKTrainingCrosscoder,
)
from sae_lens_crosscoder.synthetic import Concept, PlantedWorld, shuffled_batches
from sae_lens_crosscoder.synthetic.scoring import score_card, truth_table
from sae_lens_crosscoder.training.distributed.latent_shards import shard_of
from tests.crosscoders.conftest import D_SAE, STEP, as_lists, dense, perturb, stacked_batch, step
from tests.reference import architectures as ref
from tests.reference import crosscoder as plain_ref

WIDTHS = (2, 5)
SMALL = {"d_models": (3, 4), "d_sae": D_SAE, "dtype": "float64"}


def topk(**fields):
    fields = {"k": 3, "decoder_bias_init": "zeros"} | SMALL | fields
    return perturb(TopKTrainingCrosscoder(TopKCrosscoderTrainingConfig(**fields)))


def matryoshka(**fields):
    fields = {"k": 2.5, "decoder_bias_init": "zeros", "matryoshka_widths": WIDTHS} | SMALL | STEP | fields
    return perturb(MatryoshkaBatchTopKTrainingCrosscoder(MatryoshkaBatchTopKCrosscoderTrainingConfig(**fields)))


def jumprelu(**fields):
    crosscoder = JumpReLUTrainingCrosscoder(JumpReLUCrosscoderTrainingConfig(**(SMALL | fields)))
    perturb(crosscoder)
    with torch.no_grad():
        crosscoder.threshold.copy_(torch.linspace(0, 1.5, D_SAE))
    return crosscoder


BUILD = {"topk": topk, "matryoshka": matryoshka, "jumprelu": jumprelu}
every_architecture = pytest.mark.parametrize("kind", list(BUILD))


def training_step(x, coefficient=0.3, dead=None):
    plain = step(x, dead=dead)
    return TrainStepInput(
        sae_in=plain.sae_in, coefficients={"l0": coefficient}, dead_neuron_mask=plain.dead_neuron_mask,
        n_training_steps=0, is_logging_step=False,
    )  # fmt: skip


def parts_of(crosscoder, x):
    """Weights as lists, tokens cut by model, pre-activations and score norms."""
    w = as_lists(crosscoder)
    tokens = w.tokens(x)
    pre = [plain_ref.pre_activations(h, w.encoders, w.b_enc) for h in tokens]
    return w, tokens, pre, [plain_ref.score_norm(decoder, crosscoder.cfg.score) for decoder in w.decoders]


@pytest.mark.parametrize("score", ["sum", "max"])
def test_topk_keeps_the_largest_scores_of_every_token_and_a_threshold_for_the_batch(score):
    crosscoder, x = topk(score=score), stacked_batch(n=20)
    output = crosscoder.training_forward_pass(training_step(x))
    w, tokens, pre, norms = parts_of(crosscoder, x)
    acts = [plain_ref.relu(row) for row in pre]
    f = ref.select_topk(acts, norms, k=3)
    torch.testing.assert_close(output.feature_acts, torch.tensor(f, dtype=torch.float64), rtol=1e-10, atol=1e-10)
    assert (output.feature_acts > 0).sum(dim=1).max() == 3
    h_hat = [plain_ref.reconstruct(row, w.decoders, w.b_dec) for row in f]
    assert output.loss.item() == pytest.approx(plain_ref.reconstruction_loss(tokens, h_hat, "l2_norm"))
    assert crosscoder.topk_threshold.item() == pytest.approx(ref.threshold_of_batch(acts, norms, k=3))


@pytest.mark.usefixtures("each_training_step")
@pytest.mark.parametrize("kind", ["l2_norm", "mse"])
def test_matryoshka_adds_the_loss_of_the_first_latents_alone_at_every_width(kind):
    crosscoder, x = matryoshka(reconstruction_loss=kind), stacked_batch()
    output = crosscoder.training_forward_pass(training_step(x))
    w, tokens, pre, norms = parts_of(crosscoder, x)
    f = plain_ref.select_batchtopk([plain_ref.relu(row) for row in pre], norms, 2.5)
    torch.testing.assert_close(dense(output.feature_acts), torch.tensor(f, dtype=torch.float64), rtol=1e-10, atol=1e-10)
    expected = ref.inner_losses(tokens, f, w.decoders, w.b_dec, WIDTHS, kind)
    assert [output.losses[f"inner_loss_{width}"].item() for width in WIDTHS] == pytest.approx(expected)
    h_hat = [plain_ref.reconstruct(row, w.decoders, w.b_dec) for row in f]
    total = sum(expected) + plain_ref.reconstruction_loss(tokens, h_hat, kind)
    assert output.loss.item() == pytest.approx(total)


def test_the_sparse_step_of_matryoshka_has_the_gradients_of_the_dense_one():
    x, dead = stacked_batch(), torch.arange(D_SAE) > 7
    gradients = []
    for training in ("sparse", "dense"):
        crosscoder = matryoshka(training_step=training, aux_loss_coefficient=0.25)
        crosscoder.training_forward_pass(training_step(x, dead=dead)).loss.backward()
        gradients.append({name: weights.grad for name, weights in crosscoder.named_parameters()})
    for name, expected in gradients[1].items():
        torch.testing.assert_close(gradients[0][name], expected, rtol=1e-10, atol=1e-12, msg=name)


@pytest.mark.parametrize("mode", ["step", "tanh", "quadratic"])
def test_jumprelu_is_its_formula_with_every_penalty(mode):
    target = 4.0 if mode == "quadratic" else None
    crosscoder = jumprelu(jumprelu_sparsity_loss_mode=mode, target_l0=target, pre_act_loss_coefficient=0.7)
    x, dead = stacked_batch(), torch.arange(D_SAE) > 7
    output = crosscoder.training_forward_pass(training_step(x, dead=dead))
    w, tokens, pre, norms = parts_of(crosscoder, x)
    thresholds = crosscoder.threshold.tolist()
    f = ref.jump(pre, thresholds)
    torch.testing.assert_close(output.feature_acts, torch.tensor(f, dtype=torch.float64), rtol=1e-10, atol=1e-10)
    h_hat = [plain_ref.reconstruct(row, w.decoders, w.b_dec) for row in f]
    expected = {
        "reconstruction_loss": plain_ref.reconstruction_loss(tokens, h_hat, "l2_norm"),
        "l0_loss": 0.3 * ref.sparsity_loss(pre, thresholds, norms, mode, 4.0, target),
        "pre_act_loss": 0.7
        * sum(max(thresholds[j] - row[j], 0.0) * norms[j] for row in pre for j in range(8, D_SAE))
        / len(pre),
    }
    assert {name: value.item() for name, value in output.losses.items()} == pytest.approx(expected)
    assert output.loss.item() == pytest.approx(sum(expected.values()))


@pytest.mark.parametrize("ste_to_input", [False, True])
def test_thresholds_learn_by_the_rectangle_and_the_encoder_only_if_told_to(ste_to_input):
    crosscoder, x = jumprelu(jumprelu_bandwidth=1.0, jumprelu_ste_to_input=ste_to_input), stacked_batch()
    _, _, pre, _ = parts_of(crosscoder, x)
    thresholds = crosscoder.threshold.tolist()
    # The gradient that reaches the activations comes from a copy in which they are free.
    values = torch.tensor(ref.jump(pre, thresholds), dtype=torch.float64, requires_grad=True)
    free = copy.deepcopy(crosscoder)
    error = free.run_time_activation_norm_fn_in(x - free.decode(values))
    torch.stack([part.norm(dim=-1) for part in free.layout.split(error)], dim=-1).mean().backward()
    of_step = [[0.3 / len(pre)] * D_SAE] * len(pre)
    expected = ref.threshold_gradient(pre, thresholds, values.grad.tolist(), of_step, 1.0)
    crosscoder.training_forward_pass(training_step(x)).loss.backward()
    torch.testing.assert_close(crosscoder.threshold.grad.double(), torch.tensor(expected, dtype=torch.float64))
    assert any(expected)
    through_activations = (values.grad * (torch.tensor(pre) > torch.tensor(thresholds))).T @ x
    is_plain = torch.allclose(crosscoder.W_enc.grad.T, through_activations)
    assert is_plain != ste_to_input


@every_architecture
@pytest.mark.parametrize("scales", [None, (0.5, 3.0)])
def test_the_saved_crosscoder_is_the_trained_one_in_canonical_form(kind, scales, tmp_path):
    crosscoder, x = BUILD[kind](activation_scales=scales), stacked_batch(n=40)
    with torch.no_grad():
        crosscoder.W_dec[3] = 0
    for seed in range(3):
        crosscoder.training_forward_pass(training_step(stacked_batch(n=40, seed=seed)))
    crosscoder.save_inference_model(tmp_path)
    saved = slc.load(tmp_path)
    assert saved.cfg.architecture() == "jumprelu_crosscoder"
    assert saved.cfg.metadata.training_architecture == crosscoder.cfg.architecture()
    norms = crosscoder.score_norms().detach()
    scaled = crosscoder.run_time_activation_norm_fn_in(x)
    pre = scaled @ crosscoder.W_enc + crosscoder.b_enc
    limits = crosscoder.threshold.double() * norms if kind == "jumprelu" else crosscoder.topk_threshold
    expected = (pre.relu() * norms) * (pre * norms > limits)
    torch.testing.assert_close(saved.encode(x), expected.detach(), rtol=1e-6, atol=1e-6)
    acts = torch.where(norms > 0, saved.encode(x) / norms, 0)
    torch.testing.assert_close(saved(x), crosscoder.decode(acts), rtol=1e-10, atol=1e-10)
    for again in (SAE.load_from_disk(tmp_path), saved.to_jumprelu_sae()):
        assert torch.equal(again.encode(x), saved.encode(x))
    assert torch.equal(saved.encode_sparse(x).to_dense() > 0, saved.encode(x) > 0)


def test_a_saved_topk_crosscoder_keeps_k_latents_on_average(tmp_path):
    crosscoder = topk(topk_threshold_lr=0.01)
    for seed in range(60):
        crosscoder.training_forward_pass(training_step(stacked_batch(n=64, seed=seed)))
    crosscoder.save_inference_model(tmp_path)
    active = slc.load(tmp_path).encode(stacked_batch(n=4000, seed=99)) > 0
    assert active.sum(dim=1).double().mean().item() == pytest.approx(3, abs=0.15)
    assert active.sum(dim=1).unique().numel() > 1


CHAT_ONLY = [*["shared"] * 16, *["chat_only"] * 6, *["base_only"] * 3]
WORLD = PlantedWorld([Concept(kind, 0.06) for kind in CHAT_ONLY], d_models=(32, 32), seed=0)
TANH = {"jumprelu_sparsity_loss_mode": "tanh", "jumprelu_ste_to_input": True, "pre_act_loss_coefficient": 1e-4}
TRAINED = {
    "topk": ("topk_crosscoder", {"k": 2, "topk_threshold_lr": 0.01}),
    "matryoshka": ("matryoshka_batchtopk_crosscoder", {"k": 1.5, "matryoshka_widths": [16, 32]}),
    "jumprelu, step": ("jumprelu_crosscoder", {"l0_coefficient": 0.03}),
    "jumprelu, tanh": ("jumprelu_crosscoder", {"l0_coefficient": 0.03, "jumprelu_bandwidth": 0.3, **TANH}),
}


def trainer_of(name, steps=600, batches=None, d_sae=64, **options):
    architecture, fields = TRAINED[name]
    torch.manual_seed(0)
    sae_class, cfg_class = SAE_TRAINING_CLASS_REGISTRY[architecture]
    cfg = cfg_class(d_model=32, d_sae=d_sae, decoder_bias_init="zeros", gradient_clip_norm=1.0, **fields)
    trainer_cfg = slc.CrosscoderTrainerConfig(
        total_training_samples=steps * 256, train_batch_size_samples=256, lr=5e-3, lr_warm_up_steps=min(20, steps // 4),
        lr_decay_steps=steps // 5, dead_feature_window=200, **options,
    )  # fmt: skip
    batches = shuffled_batches(WORLD.sample(20_000, seed=1).activations, 256, seed=0) if batches is None else batches
    return slc.CrosscoderTrainer(trainer_cfg, sae_class(cfg), batches)


@pytest.mark.parametrize("name", list(TRAINED))
def test_each_finds_the_concepts_that_one_model_alone_has(name, tmp_path):
    trainer = trainer_of(name)
    trainer.fit().save_inference_model(tmp_path)
    saved, tokens = slc.load(tmp_path), WORLD.sample(20_000, seed=2)
    diagnosis = slc.diagnose(saved, slc.EvalData(activations=tokens.activations.split(4096)))
    card = score_card(WORLD, truth_table(WORLD, saved, tokens), diagnosis.latents)
    for verdict in (card.chat_verdict, card.base_verdict):
        assert (verdict.precision, verdict.recall) == (1, 1)
    assert diagnosis.manifest["fve"]["pooled"] > 0.97
    assert diagnosis.manifest["l0"] == pytest.approx(trainer.history.l0.iloc[-5:].mean(), abs=0.5)


@pytest.mark.parametrize("name", list(TRAINED))
def test_saelens_trains_it_and_an_interrupted_run_resumes_to_the_same_bits(name, tmp_path):
    x = list(WORLD.sample(256 * 12, seed=3).activations.split(256))
    ours = trainer_of(name, steps=12, batches=iter(x))
    unbroken = ours.fit()
    host = trainer_of(name, steps=12, batches=iter(x))
    trained = SAETrainer(host.cfg, host.sae, host.data_provider).fit()
    assert not torch.equal(trained.W_dec, trainer_of(name, steps=12).sae.W_dec)
    options = {"checkpoint_path": str(tmp_path), "n_checkpoints": 3}
    trainer_of(name, steps=12, batches=iter(x), **options).fit()
    checkpoint = sorted(tmp_path.glob("**/trainer_state.pt"), key=lambda path: path.stat().st_mtime)[0].parent
    resumed = trainer_of(name, steps=12, batches=iter(x), resume_from_checkpoint=str(checkpoint)).fit()
    for key, expected in unbroken.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], expected), key


@every_architecture
def test_a_config_is_written_and_read_as_it_was_and_registered_with_saelens(kind):
    cfg = BUILD[kind]().cfg
    again = SAE_TRAINING_CLASS_REGISTRY[cfg.architecture()][1].from_dict(cfg.to_dict())
    assert again == cfg
    assert isinstance(TrainingSAE.from_dict(cfg.to_dict()), type(BUILD[kind]()))


MATRYOSHKA = MatryoshkaBatchTopKCrosscoderTrainingConfig


@pytest.mark.parametrize(
    ("cls", "fields", "message"),
    [
        (TopKCrosscoderTrainingConfig, {"k": 2.5}, "k=2.5 must be a whole number"),
        (TopKCrosscoderTrainingConfig, {"training_step": "sparse"}, "'sparse' is not available for a topk_crosscoder"),
        (TopKCrosscoderTrainingConfig, {"k": 2, "n_chat_exclusive": 2}, "n_chat_exclusive=2 and k_anneal_steps=0 are"),
        (TopKCrosscoderTrainingConfig, {"k": 2, "k_max": 4, "k_anneal_steps": 3}, "k_anneal_steps=3 are not available"),
        (JumpReLUCrosscoderTrainingConfig, {"training_step": "sparse"}, "not available for a jumprelu_crosscoder"),
        (JumpReLUCrosscoderTrainingConfig, {"jumprelu_sparsity_loss_mode": "quadratic"}, "needs a target_l0"),
        (JumpReLUCrosscoderTrainingConfig, {"target_l0": 3.0}, "no other mode has one"),
        (JumpReLUCrosscoderTrainingConfig, {"jumprelu_bandwidth": 0.0}, "jumprelu_bandwidth=0.0 must be positive"),
        (MATRYOSHKA, {"k": 2}, r"matryoshka_widths=\(\) must be ascending"),
        (MATRYOSHKA, {"k": 2, "matryoshka_widths": [4, 11]}, r"matryoshka_widths=\(4, 11\) must be ascending"),
        (MATRYOSHKA, {"k": 2, "matryoshka_widths": [4, 4]}, "must be ascending"),
        (MATRYOSHKA, {"k": 2, "matryoshka_widths": [4], "n_chat_exclusive": 2}, "not available with matryoshka_widths"),
    ],
)
def test_what_cannot_be_combined_is_refused_by_name(cls, fields, message):
    with pytest.raises(ValueError, match=message):
        cls(**(SMALL | fields))


def test_shards_and_polish_are_refused_by_name():
    with pytest.raises(ValueError, match="latent_shards=11 is not available for a matryoshka_batchtopk_crosscoder"):
        shard_of(matryoshka(), 0, 11)
    for build in (topk, jumprelu):
        with pytest.raises(ValueError, match="training_step='dense' runs in one process only"):
            shard_of(build(), 0, 1)
    for build in (topk, matryoshka, jumprelu):
        with pytest.raises(
            ValueError, match=f"polish takes a BatchTopKTrainingCrosscoder, but got a {build().__class__.__name__}"
        ):
            slc.training.polish(build(), iter(()), slc.training.PolishConfig(lr=1e-3))
