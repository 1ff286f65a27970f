"""SAELens's own runners, evaluations, configs and parser work on a pair and on crosscoders."""

import json

import pytest
import torch
from sae_lens import (
    SAE,
    ActivationsStore,
    LanguageModelSAERunnerConfig,
    LanguageModelSAETrainingRunner,
    TrainingSAE,
    TrainingSAEConfig,
)
from sae_lens.evals import EvalConfig, get_recons_loss, run_evals
from sae_lens.llm_sae_training_runner import _parse_cfg_args
from sae_lens.multi_sae_training_runner import MultiSAETrainingRunner, MultiSAETrainingRunnerConfig
from sae_lens.training.activation_scaler import ActivationScaler

import sae_lens_crosscoder as slc
from tests.hosts.conftest import BATCH, CONTEXT, D_MODEL, D_SAE, HOOK, K, host_config, settings, training_config
from tests.models.small_models import some_tokens

ARCHITECTURES = {"crosscoder": slc.ReLUCrosscoder, "batchtopk_crosscoder": slc.JumpReLUCrosscoder}


@pytest.fixture(scope="module", params=list(ARCHITECTURES))
def trained(request, pair, rows, tmp_path_factory):
    """(architecture, SAELens's runner after its run, the folder that it wrote)."""
    folder = tmp_path_factory.mktemp(request.param)
    cfg = host_config(request.param, output_path=str(folder))
    runner = LanguageModelSAETrainingRunner(cfg, override_model=pair, override_dataset=rows)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        before = {name: value.clone() for name, value in runner.sae.named_parameters()}
        runner.run()
    assert all(not torch.equal(before[name], value) for name, value in runner.sae.named_parameters())
    return request.param, runner, folder


def test_saelens_trains_our_classes(trained):
    architecture, runner, _ = trained
    assert runner.cfg.sae.architecture() == architecture
    assert isinstance(runner.sae, slc.L1TrainingCrosscoder | slc.BatchTopKTrainingCrosscoder)
    assert all(torch.isfinite(value).all() for value in runner.sae.parameters())


def test_saelens_reads_what_its_runner_saved(trained):
    architecture, runner, folder = trained
    crosscoder = SAE.load_from_disk(folder)
    assert type(crosscoder) is ARCHITECTURES[architecture]
    assert crosscoder.cfg.metadata.hook_name == HOOK
    assert slc.load(folder).cfg.d_models == (D_MODEL, D_MODEL)
    x = runner.model.activations(some_tokens(d_vocab=200), HOOK)
    with torch.no_grad():
        if architecture == "crosscoder":  # BatchTopK selects by batch, so its two forms differ
            torch.testing.assert_close(crosscoder(x), runner.sae(x), rtol=1e-4, atol=1e-4)
        assert torch.isfinite(crosscoder(x)).all()


def test_a_training_checkpoint_of_saelens_is_read_back_to_the_bit(trained, tmp_path):
    _, runner, _ = trained
    runner.sae.save_model(tmp_path)
    read = TrainingSAE.load_from_disk(tmp_path)
    assert type(read) is type(runner.sae)
    saved = runner.sae.state_dict()
    for name, value in read.state_dict().items():
        # SAELens's loader casts every floating buffer to the config's dtype, the float64 threshold too.
        assert torch.equal(value, saved[name].to(value.dtype)), name


def test_saelens_trains_on_our_activations_in_the_store(pair, rows):
    store = ActivationsStore.from_config(pair, host_config(), override_dataset=rows)
    assert next(store).shape == (BATCH, 2 * D_MODEL)
    tokens = store.get_batch_tokens(4)
    assert tokens.shape == (4, CONTEXT)
    assert torch.equal(store.get_activations(tokens), pair.activations(tokens, HOOK))


def test_multi_sae_runner_trains_both_architectures_on_one_stream(pair, rows, tmp_path):
    cfg = MultiSAETrainingRunnerConfig(
        saes={name: training_config(name) for name in ARCHITECTURES},
        hook_names=HOOK,
        **settings(output_path=str(tmp_path)),
    )
    crosscoders = MultiSAETrainingRunner(cfg, override_model=pair, override_dataset=rows).run()
    assert set(crosscoders) == set(ARCHITECTURES)
    for architecture, inference_class in ARCHITECTURES.items():
        (saved,) = [path.parent for path in tmp_path.rglob("cfg.json") if architecture == path.parent.name]
        assert type(SAE.load_from_disk(saved)) is inference_class


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_saelens_runner_config_survives_its_own_dict_and_json(architecture):
    cfg = host_config(architecture)
    again = LanguageModelSAERunnerConfig.from_dict(json.loads(json.dumps(cfg.to_dict())))
    assert again.sae == cfg.sae
    assert type(again.sae) is type(cfg.sae)
    assert json.dumps(again.to_dict()) == json.dumps(cfg.to_dict())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_training_config_is_found_by_its_architecture(architecture):
    cfg = training_config(architecture, d_model=None, d_models=(3, 5), activation_scales=(0.5, 2.0))
    again = TrainingSAEConfig.from_dict(json.loads(json.dumps(cfg.to_dict())))
    assert again == cfg
    assert (again.d_models, again.activation_scales, again.d_in) == ((3, 5), (0.5, 2.0), 8)


class TestParser:
    def test_an_architecture_brings_its_own_flags(self):
        args = "--architecture batchtopk_crosscoder --d_in 0 --d_sae 512 --d_models 20 28 --k 7 --score max"
        cfg = _parse_cfg_args([*args.split(), "--hook_name", HOOK, "--threshold_rule", "authors"])
        assert isinstance(cfg.sae, slc.BatchTopKCrosscoderTrainingConfig)
        assert (cfg.sae.d_models, cfg.sae.d_in, cfg.sae.d_sae, cfg.sae.k) == ((20, 28), 48, 512, 7)
        assert (cfg.sae.score, cfg.sae.threshold_rule, cfg.hook_name) == ("max", "authors", HOOK)

    def test_the_l1_crosscoder_too(self):
        args = "--architecture crosscoder --d_in 64 --d_sae 32 --l1_coefficient"
        cfg = _parse_cfg_args([*args.split(), "0.5"])
        assert isinstance(cfg.sae, slc.L1CrosscoderTrainingConfig)
        assert (cfg.sae.d_models, cfg.sae.l1_coefficient) == ((32, 32), 0.5)


class TestEvaluation:
    @pytest.fixture(scope="class")
    def inference(self, pair, rows, tmp_path_factory):
        cfg = host_config("crosscoder", output_path=str(tmp_path_factory.mktemp("inference")))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            LanguageModelSAETrainingRunner(cfg, override_model=pair, override_dataset=rows).run()
        return SAE.load_from_disk(cfg.output_path)

    def test_run_evals_gives_finite_metrics(self, pair, rows, inference):
        store = ActivationsStore.from_config(pair, host_config(), override_dataset=rows)
        config = EvalConfig(
            batch_size_prompts=4,
            n_eval_reconstruction_batches=2,
            n_eval_sparsity_variance_batches=2,
            compute_kl=True,
            compute_ce_loss=True,
            compute_l2_norms=True,
            compute_sparsity_metrics=True,
            compute_variance_metrics=True,
            compute_featurewise_density_statistics=True,
        )
        metrics, features = run_evals(inference, store, pair, ActivationScaler(), config)
        flat = {name: value for group in metrics.values() for name, value in group.items()}
        assert {"kl_div_with_sae", "ce_loss_with_sae", "ce_loss_score", "l0", "explained_variance"} <= set(flat)
        assert all(torch.isfinite(torch.tensor(value)) for value in flat.values())
        assert flat["kl_div_with_sae"] > 0
        assert len(features["feature_density"]) == D_SAE

    def test_recons_loss_keeps_the_models_apart(self, pair, inference):
        tokens = some_tokens(d_vocab=200)
        losses = get_recons_loss(inference, pair, ActivationScaler(), tokens, compute_kl=True, compute_ce_loss=True)
        assert losses["ce_loss_with_sae"].shape == (*losses["ce_loss_without_sae"].shape[:2], 2)
        assert losses["kl_div_with_sae"].shape == (*tokens.shape, 2)
        with torch.no_grad():
            reconstruction = inference(pair.activations(tokens, HOOK))
            for m, (model, part) in enumerate(
                zip((pair.base, pair.chat), reconstruction.split(D_MODEL, -1), strict=True)
            ):
                hooks = [(HOOK, lambda value, hook, part=part: part)]
                logits = model.run_with_hooks(tokens, fwd_hooks=hooks)
                own = model(tokens).log_softmax(-1)
                kl = (own.exp() * (own - logits.log_softmax(-1))).sum(-1)
                torch.testing.assert_close(losses["kl_div_with_sae"][..., m], kl, rtol=1e-3, atol=1e-4)
                ce = -logits.log_softmax(-1)[:, :-1].gather(-1, tokens[:, 1:, None]).squeeze(-1)
                torch.testing.assert_close(losses["ce_loss_with_sae"][..., m], ce, rtol=1e-4, atol=1e-4)


def test_batchtopk_threshold_is_useful_after_a_short_run_of_saelens(trained):
    architecture, runner, folder = trained
    if architecture == "crosscoder":
        pytest.skip("has no threshold")
    crosscoder = slc.load(folder)
    with torch.no_grad():
        x = runner.model.activations(some_tokens(n_prompts=16, d_vocab=200), HOOK)
        l0 = (crosscoder.encode(x) > 0).sum(-1).double().mean().item()
    assert K / 4 < l0 < 4 * K
