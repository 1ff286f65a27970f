"""A crosscoder over several hooks, of one model or of two, is trained, cached, resumed, saved as any other."""

from dataclasses import replace

import pytest
import torch
from datasets import Dataset
from sae_lens import SAE
from sae_lens.evals import EvalConfig, run_evals
from sae_lens.training.activation_scaler import ActivationScaler

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.activations.cache.reader import ActivationCache
from sae_lens_crosscoder.planning import plan
from sae_lens_crosscoder.training.data.run_cache import write_run_cache

HOOKS = ["blocks.0.hook_resid_post", "blocks.2.hook_resid_post"]
JOINED = "+".join(HOOKS)
D_SAE, BATCH, STEPS = 32, 64, 8


def rows():
    generator = torch.Generator().manual_seed(0)
    return Dataset.from_dict({"input_ids": torch.randint(5, 90, (80, 16), generator=generator).tolist()})


def config(tmp_path, chat="tiny-chat", **fields):
    sae = {"d_model": 96, "d_sae": D_SAE, "k": 4, "topk_threshold_lr": 0.1} | fields.pop("sae", {})
    defaults = dict(
        sae=slc.BatchTopKCrosscoderTrainingConfig(**sae),
        model_name="tiny-base",
        chat_model_name=chat,
        hook_names=HOOKS,
        context_size=16,
        training_tokens=STEPS * BATCH,
        train_batch_size_tokens=BATCH,
        store_batch_size_prompts=4,
        n_held_out_rows=8,
        prepend_bos=False,
        lr=1e-3,
        lr_warm_up_steps=2,
        log_frequency=4,
        checkpoint_path=None,
        output_path=str(tmp_path / "output"),
    )
    return slc.CrosscoderRunnerConfig(**(defaults | fields))


def run(cfg):
    runner = slc.CrosscoderTrainingRunner(cfg, override_dataset=rows())
    return runner, runner.run()


@pytest.fixture(scope="module", params=[None, "tiny-chat"], ids=["one model", "two models"])
def trained(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    runner, crosscoder = run(config(folder, request.param))
    return runner, crosscoder, folder / "output"


def test_every_model_and_hook_is_a_source_with_figures_of_its_own(trained):
    runner, crosscoder, _ = trained
    layout, models = crosscoder.layout, runner.cfg.model_names
    named = [(name, hook) for name in models for hook in HOOKS]
    assert [tuple(source.values()) for source in crosscoder.cfg.metadata.sources] == named
    assert layout.hook_names == tuple(HOOKS)
    assert layout.d_models == (96,) * len(named)
    assert crosscoder.decoder_norms.shape == (D_SAE, len(named))
    history = next(iter(runner.trainers.values())).history
    assert [f"fve_{name}" for name in layout.names] == [
        name for name in history if name.startswith("fve_b") or "@" in name
    ]
    assert history.fve_difference.isna().all() == (len(models) == 1)


def test_a_run_reads_what_the_models_have_at_the_hooks(trained):
    runner, _, _ = trained
    tokens = runner.held_out_tokens[:2]
    parts = [model.run_with_cache(tokens)[1][hook] for model in runner.pair.members for hook in HOOKS]
    assert torch.equal(runner.held_out_store.get_activations(tokens), torch.cat(parts, dim=-1))


def test_the_folder_and_the_config_give_back_the_crosscoder(trained):
    runner, crosscoder, folder = trained
    again = slc.load(folder)
    assert again.layout == crosscoder.layout
    assert again.cfg.metadata.hook_name == JOINED
    x = torch.randn(5, crosscoder.cfg.d_in)
    assert torch.equal(again(x), crosscoder(x))
    assert slc.CrosscoderRunnerConfig.from_dict(runner.cfg.to_dict()).to_dict() == runner.cfg.to_dict()
    crosscoder.to_jumprelu_sae().save_model(folder / "plain")
    plain = SAE.load_from_disk(folder / "plain")
    assert torch.allclose(plain(x), crosscoder(x), atol=1e-6)


def test_layers_of_one_model_are_never_taken_for_base_and_chat(trained):
    runner, crosscoder, _ = trained
    table = slc.diagnose(crosscoder, runner.held_out_data()).latents
    assert set(table.label) == {"undefined"}
    assert table.delta_norm.isna().all()
    assert table[[f"dec_norm_{name}" for name in crosscoder.layout.names]].notna().all(axis=None)
    for refused in (
        lambda: slc.analysis.concepts(crosscoder, runner.pair, []),
        lambda: slc.explore(crosscoder, runner.held_out_data()),
        lambda: slc.analysis.difference_shares(crosscoder, torch.zeros(crosscoder.cfg.d_in)),
        lambda: slc.analysis.decoupled_pairs(crosscoder, table),
        lambda: slc.causal.intervention(crosscoder, [0], "replace"),
    ):
        with pytest.raises(ValueError, match=r"hooks of|two models of one width|two models of the same width"):
            refused()


def test_the_plan_counts_the_models_that_are_there_up_to_the_last_hook(trained):
    runner, _, _ = trained
    found = plan(runner.cfg, measure_time=False)
    single = plan(replace_hooks(runner.cfg, HOOKS[1:]), measure_time=False)
    assert [size.n_params_to_hook for size in found.models] == [single.models[0].n_params_to_hook] * len(found.models)
    assert len(found.models) == len(runner.cfg.model_names)
    assert found.n_params[""] == sum(weights.numel() for weights in runner.training_crosscoder.parameters())


def replace_hooks(cfg, hooks):
    sae = replace(cfg.sae, d_in=0, d_models=None, d_model=96, hook_names=None)
    return cfg.replace(hook_names=None, hook_name=hooks[0], chat_model_name="tiny-chat", sae=sae)


def test_saelens_evaluates_the_joined_hooks(trained):
    runner, crosscoder, _ = trained
    cfg = EvalConfig(batch_size_prompts=2, n_eval_reconstruction_batches=1, n_eval_sparsity_variance_batches=1,
                     compute_ce_loss=True, compute_l2_norms=True, compute_variance_metrics=True)  # fmt: skip
    metrics, _ = run_evals(crosscoder, runner.held_out_store, runner.pair, ActivationScaler(), cfg)
    assert 0 < metrics["model_performance_preservation"]["ce_loss_without_sae"] < 20


def test_a_run_on_cached_activations_is_the_run_on_the_models(tmp_path):
    path = tmp_path / "data"
    rows().save_to_disk(path)
    for chat in (None, "tiny-chat"):
        cfg = config(tmp_path, chat, dataset_path=str(path), cached_activations_path=str(tmp_path / f"cache-{chat}"))
        training, held_out = write_run_cache(cfg, "float32")
        live = slc.CrosscoderTrainingRunner(cfg)
        assert training.layout == live.pair.layout_at(JOINED)
        tokens = training.contexts[0]
        assert torch.equal(torch.cat(list(training)), live.pair.activations(tokens, JOINED).flatten(0, 1))
        cached = slc.CrosscoderTrainingRunner(cfg.replace(use_cached_activations=True))
        crosscoder = cached.run()
        assert crosscoder.layout == training.layout
        assert len(slc.diagnose(crosscoder, cached.held_out_data()).latents) == D_SAE
        with pytest.raises(ValueError, match="holds activations at"):
            ActivationCache(held_out.path).validate_source(cfg.model_names, HOOKS[0])


def test_a_stopped_run_resumes_to_the_bit(tmp_path):
    whole, _ = run(config(tmp_path / "whole", None))
    fields = dict(checkpoint_path=str(tmp_path / "checkpoints"), n_checkpoints=1)
    run(config(tmp_path / "part", None, **fields))
    (checkpoint,) = (tmp_path / "checkpoints").glob("*/*/sae_weights.safetensors")
    again, _ = run(config(tmp_path / "rest", None, resume_from_checkpoint=str(checkpoint.parent), **fields))
    for name, weights in whole.training_crosscoder.state_dict().items():
        assert torch.equal(weights, again.training_crosscoder.state_dict()[name]), name


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"chat": None, "hook_names": None, "hook_name": HOOKS[0]}, "chat_model_name=None leaves one model"),
        ({"hook_name": "blocks.1.hook_resid_post"}, "Give either hook_name="),
        ({"hook_names": [HOOKS[0]] * 2}, "must be at least two different hooks"),
        ({"hook_names": HOOKS[:1], "hook_name": HOOKS[0]}, "must be at least two different hooks"),
        ({"sae": {"d_model": None, "d_models": (96, 64, 96)}}, "has 3 widths, expected 4"),
        ({"sae": {"n_chat_exclusive": 2}}, "need two models at one hook"),
    ],
)
def test_runs_that_make_no_sense_are_refused(tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **fields)


def test_weakly_causal_hooks_must_be_named_in_the_order_in_which_the_model_reaches_them(tmp_path):
    within = ["blocks.1.hook_resid_post", "blocks.1.hook_mlp_out"]  # in one layer, so that names do not tell
    cfg = config(tmp_path, None, hook_names=within, sae={"causality": "weak"})
    with pytest.raises(ValueError, match=r"reach the hooks .* in another order, .*mlp_out.*resid_post"):
        slc.CrosscoderTrainingRunner(cfg, override_dataset=rows())
    _, crosscoder = run(config(tmp_path, None, hook_names=within[::-1], sae={"causality": "weak"}))
    assert crosscoder.cfg.weak_causality().hooks_read().tolist() == crosscoder.hooks_read.tolist()
    with pytest.raises(ValueError, match="causality='weak' needs several hooks"):
        config(tmp_path, hook_names=None, hook_name=HOOKS[0], sae={"causality": "weak"})


def test_a_loaded_model_that_is_not_the_configs_is_refused(tmp_path):
    pair = slc.HookedModelPair.from_pretrained("tiny-base", "tiny-chat")
    with pytest.raises(ValueError, match="override_model has 2 models"):
        slc.CrosscoderTrainingRunner(config(tmp_path, None), override_dataset=rows(), override_model=pair)
