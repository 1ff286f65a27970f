"""A crosscoder of more than two models: trained, cached, planned, diagnosed, explored; what needs a pair says so."""

import importlib
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.causal import generate_responses, kl_between_models, latent_effects
from sae_lens_crosscoder.planning import plan
from sae_lens_crosscoder.training.data.run_cache import write_run_cache
from sae_lens_crosscoder.workflows.causal_experiment import CausalConfig, run_causal
from sae_lens_crosscoder.workflows.explore_folder import ReportConfig, explore_folder
from tests.training.test_several_hooks import BATCH, D_SAE, HOOKS, JOINED, config, rows

HOOK = HOOKS[1]
NAMES = ("tiny-base", "tiny-null", "tiny-chat")


def family_config(tmp_path, **fields):
    defaults = {"chat": "tiny-null", "more_model_names": ["tiny-chat"], "hook_names": None, "hook_name": HOOK}
    return config(tmp_path, **(defaults | fields))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("family")
    runner = slc.CrosscoderTrainingRunner(family_config(folder), override_dataset=rows())
    return runner, runner.run(), folder / "output"


def test_every_model_is_a_source_that_is_read_and_named(trained):
    runner, crosscoder, folder = trained
    assert crosscoder.model_names == NAMES == slc.load(folder).model_names
    assert crosscoder.layout.d_models == (96, 96, 96)
    tokens = runner.held_out_tokens[:2]
    parts = [model.run_with_cache(tokens)[1][HOOK] for model in runner.pair.members]
    assert torch.equal(runner.held_out_store.get_activations(tokens), torch.cat(parts, dim=-1))
    assert {f"fve_{name}" for name in crosscoder.layout.names} <= set(runner.summary)
    assert slc.CrosscoderRunnerConfig.from_dict(runner.cfg.to_dict()).to_dict() == runner.cfg.to_dict()


def test_two_of_the_models_are_a_pair_with_their_weights(trained):
    runner, _, _ = trained
    pair = runner.pair.of("tiny-null", "model_2")
    assert (pair.base, pair.chat) == (runner.pair.members[1], runner.pair.members[2])
    assert pair.model_names == NAMES[1:]
    tokens = runner.held_out_tokens[:2]
    assert torch.equal(pair.activations(tokens, HOOK), runner.pair.activations(tokens, HOOK)[..., 96:])
    with pytest.raises(ValueError, match="second='other' must be two of the models, which are tiny-base, tin"):
        runner.pair.of("tiny-null", "other")


def test_a_model_given_twice_is_found(trained):
    members = trained[0].pair.members
    assert slc.HookedModelPair(members[0], members[1], members[1]).shared_parameters
    assert not trained[0].pair.shared_parameters


def test_the_plan_counts_every_model_on_its_device(trained):
    cfg = trained[0].cfg
    found, pair = (plan(each, measure_time=False) for each in (cfg, config_of_pair(cfg)))
    assert [size.name for size in found.models] == list(NAMES)
    weights = {item.name: item.n_bytes for item in found.memory if item.name.endswith(" weights")}
    assert {f"{name} weights" for name in NAMES} <= set(weights)
    assert found.n_bytes_needed["cpu"] > pair.n_bytes_needed["cpu"] + weights["tiny-chat weights"]
    assert found.n_cache_bytes["float32"] == 1.5 * pair.n_cache_bytes["float32"]


def config_of_pair(cfg):
    sae = replace(cfg.sae, d_in=0, d_models=None, d_model=96)
    return cfg.replace(more_model_names=None, sae=sae)


def test_a_run_on_cached_activations_reads_all_models(tmp_path):
    path = tmp_path / "data"
    rows().save_to_disk(path)
    cfg = family_config(tmp_path, dataset_path=str(path), cached_activations_path=str(tmp_path / "cache"))
    training, _ = write_run_cache(cfg, "float32")
    assert training.manifest.model_names == NAMES
    cached = slc.CrosscoderTrainingRunner(cfg.replace(use_cached_activations=True))
    crosscoder = cached.run()
    assert crosscoder.model_names == NAMES
    assert list(slc.diagnose(crosscoder, cached.held_out_data()).pairs) == ["model_1", "model_2"]


def test_a_diagnosis_of_two_is_explored_with_these_two(trained):
    runner, crosscoder, _ = trained
    data = runner.held_out_data()
    data = slc.EvalData(pair=runner.pair, tokens=data.tokens[:4])
    diagnosis = slc.diagnose(crosscoder, data, models=("tiny-base", "tiny-chat"))
    exploration = slc.explore(crosscoder, data, diagnosis)
    pair = runner.pair.of("tiny-base", "tiny-chat")
    assert torch.equal(exploration.kl, kl_between_models(pair, data.tokens))
    assert list(exploration.lenses) == ["model_0", "model_1", "model_2"]
    assert len(exploration.table) == D_SAE
    assert exploration.table.delta_norm.equals(diagnosis.latents.delta_norm)


def test_a_patch_of_one_model_leaves_the_others(trained):
    runner, crosscoder, _ = trained
    tokens = runner.held_out_tokens[:1]
    before = runner.pair.activations(tokens, HOOK).split(96, dim=-1)
    with slc.patched(runner.pair, crosscoder, range(D_SAE), how="ablate", model="model_1"):
        after = runner.pair.activations(tokens, HOOK).split(96, dim=-1)
    assert [torch.equal(x, y) for x, y in zip(before, after, strict=True)] == [True, False, True]


def test_what_compares_two_models_refuses_three_by_name(trained):
    runner, crosscoder, _ = trained
    pair, data = runner.pair, runner.held_out_data()
    tokens, table = data.tokens[:2], slc.diagnose(crosscoder, data, models=NAMES[:2]).latents
    chats = [[{"role": "user", "content": "where is paris ?"}]]
    responses = generate_responses(pair, chats, max_new_tokens=2)
    by_pair = {
        "kl_between_models": lambda: kl_between_models(pair, tokens),
        "The comparison of predictions": lambda: slc.causal.next_tokens(pair, tokens[:1]),
        "locate_difference": lambda: slc.causal.locate_difference(pair, tokens, tokens > 0, [HOOK]),
        "first_look": lambda: slc.first_look(pair, data),
    }
    for name, call in by_pair.items():
        with pytest.raises(ValueError, match=f"{name} compares two models, but got 3: tiny-base, tiny-null, tiny-chat"):
            call()
    by_crosscoder = (
        lambda: latent_effects(crosscoder, pair, responses, [0]),
        lambda: slc.compare(crosscoder, pair, "where is paris ?"),
        lambda: slc.explore(crosscoder, data),
        lambda: slc.explore(crosscoder, data, responses=responses),
        lambda: slc.workflows.null_family(pair).run(crosscoder, data, tokens),
        lambda: slc.causal.intervention(crosscoder, [0], "replace"),
        lambda: slc.analysis.decoupled_pairs(crosscoder, table),
    )
    for call in by_crosscoder:
        with pytest.raises(ValueError, match=r"compares two models, but this crosscoder reads 3|got 3"):
            call()
    with pytest.raises(ValueError, match="two models of one width"):
        slc.changed(crosscoder, data, [])


def test_contrasts_and_effects_are_explored_for_the_two_that_are_diagnosed(trained):
    runner, crosscoder, _ = trained
    pair, two = runner.pair, (NAMES[0], NAMES[2])
    data = slc.EvalData(pair=pair, tokens=runner.held_out_tokens[:2])
    diagnosis = slc.diagnose(crosscoder, data, models=two, min_active=1)
    diagnosis.latents.loc[[0, 1], "verdict"] = ["chat_specific", "base_specific"]
    contrasts = slc.data.tiny_contrasts(n_pairs=4, names=["refusal"])
    responses = generate_responses(pair, [[{"role": "user", "content": "where is paris ?"}]] * 2, max_new_tokens=2)
    found = slc.explore(crosscoder, data, diagnosis, contrasts=contrasts, responses=responses, n_random=1)
    expected = slc.analysis.concepts(crosscoder, data, contrasts, diagnosis.latents, models=two)
    pd.testing.assert_frame_equal(found.concepts, expected.table)
    effects = latent_effects(crosscoder, pair, responses, [0, 1], models=two)
    numbers = ["kl_change_added", "kl_change_removed", "n_active"]
    pd.testing.assert_frame_equal(found.effects[numbers], effects[numbers], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"chat": None, "hook_names": HOOKS, "hook_name": JOINED}, "come after a chat model, but chat_model_name=None"),
        ({"sae": {"d_model": None, "d_models": (96, 64)}}, "has 2 widths, expected 3"),
        ({"sae": {"n_chat_exclusive": 2}}, "two models at one hook"),
        ({"mix": slc.DataMix([slc.MixSource(kind="answers", prompts=["a b"])])}, "kind='answers' is for two models"),
    ],
)
def test_runs_that_make_no_sense_are_refused(tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
        family_config(tmp_path, **fields)


def test_a_run_of_three_models_at_several_hooks_has_a_source_for_each(tmp_path):
    cfg = family_config(tmp_path, hook_names=HOOKS, hook_name="blocks.13.hook_resid_post")
    assert cfg.sae.d_models == (96,) * 6
    assert (cfg.sae.layout.n_models, cfg.train_batch_size_tokens) == (3, BATCH)


def test_commands_compare_the_two_models_that_are_named(trained, tmp_path, monkeypatch):
    runner, crosscoder, folder = trained
    data, two = runner.held_out_data(), ["model_0", "model_2"]
    diagnosis = slc.diagnose(crosscoder, data, min_active=1)
    columns = [name for name in diagnosis.pairs["model_2"].latents if name.startswith("nu_error") or "nu_recon" in name]
    diagnosis.pairs["model_2"].latents.loc[:, columns] = 0.5  # too few tokens for any
    diagnosis.save(folder)
    options = {"crosscoder": str(folder), "n_conversations": 3, "max_new_tokens": 4, "pool_size": D_SAE}
    rows = run_causal(CausalConfig(**options, models=two, output_path=str(tmp_path / "causal")))
    assert rows.kl_nats.notna().any()
    for models, message in (
        ([], r"models=\[\] must be two models"),
        (two[::-1], r"model_0 and model_1; model_0 and mo"),
    ):
        with pytest.raises(ValueError, match=message):
            run_causal(CausalConfig(**options, models=models, output_path=str(tmp_path / "no")))
    run = SimpleNamespace(cfg=runner.cfg, held_out_data=lambda n_rows: data, tokenizer=None, reads_cache=True)
    module = importlib.import_module(explore_folder.__module__)  # a function of the room has its name
    monkeypatch.setattr(module, "held_out_run", lambda *_: run)
    shown = explore_folder(
        ReportConfig(crosscoder=str(folder), models=two, n_held_out_rows=4, n_conversations=0), folder
    )
    assert shown.manifest["compared"] == two
    pd.testing.assert_series_equal(shown.table.delta_norm, diagnosis.pairs["model_2"].latents.delta_norm)
