"""A crosscoder of models at hooks of their own is trained, cached, planned, saved and diagnosed as any other."""

import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.cli.train_flags import train_parser
from sae_lens_crosscoder.crosscoders.compared import ComparedSources
from sae_lens_crosscoder.planning import plan
from sae_lens_crosscoder.training.data.run_cache import write_run_cache
from tests.training.test_several_hooks import D_SAE, config, rows

HOOKS = ["blocks.0.hook_resid_post", "blocks.2.hook_resid_post"]
JOINED = "|".join(HOOKS)
NAMES = ("tiny-base", "tiny-chat")


def own_hooks_config(tmp_path, **fields):
    return config(tmp_path, **({"hook_names": None, "model_hook_names": HOOKS} | fields))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own_hooks")
    runner = slc.CrosscoderTrainingRunner(own_hooks_config(folder), override_dataset=rows())
    return runner, runner.run(), folder / "output"


def test_a_saved_crosscoder_names_the_hook_of_each_model(trained):
    runner, crosscoder, folder = trained
    for read in (crosscoder, slc.load(folder)):
        assert read.cfg.metadata.hook_name == JOINED
        named = [(source["model_name"], source["hook_name"]) for source in read.cfg.metadata.sources]
        assert named == list(zip(NAMES, HOOKS, strict=True))
        assert (read.model_names, read.layout.is_pair) == (NAMES, True)
    assert slc.CrosscoderRunnerConfig.from_dict(runner.cfg.to_dict()).to_dict() == runner.cfg.to_dict()
    tokens = runner.held_out_tokens[:2]
    models = zip(runner.pair.members, HOOKS, strict=True)
    expected = torch.cat([model.run_with_cache(tokens)[1][hook] for model, hook in models], dim=-1)
    assert torch.equal(runner.held_out_store.get_activations(tokens), expected)


def test_the_diagnosis_is_that_of_the_same_activations(trained):
    runner, crosscoder, _ = trained
    data = runner.held_out_data(4)
    diagnosis = slc.diagnose(crosscoder, data)
    rows_read = runner.pair.activations(data.tokens, JOINED)[data.token_mask]
    given = slc.diagnose(crosscoder, slc.EvalData(activations=rows_read))
    assert len(diagnosis.latents) == D_SAE
    assert diagnosis.manifest["hook_name"] == JOINED
    for name in ("delta_norm", "nu_error", "frequency"):
        torch.testing.assert_close(
            *(torch.tensor(d.latents[name].to_numpy()) for d in (diagnosis, given)), equal_nan=True
        )


def test_a_run_on_cached_activations_reads_each_model_at_its_hook(tmp_path, trained):
    rows().save_to_disk(tmp_path / "data")
    folders = {"dataset_path": str(tmp_path / "data"), "cached_activations_path": str(tmp_path / "cache")}
    cfg = own_hooks_config(tmp_path, **folders)
    _, held_out = write_run_cache(cfg, "float32")
    runner, _, _ = trained
    tokens, mask = held_out.contexts
    torch.testing.assert_close(torch.cat(list(held_out)), runner.pair.activations(tokens, JOINED)[mask])
    cached = slc.CrosscoderTrainingRunner(cfg.replace(use_cached_activations=True))
    assert cached.run().cfg.metadata.hook_name == JOINED
    other = own_hooks_config(tmp_path, **folders, model_hook_names=HOOKS[::-1], use_cached_activations=True)
    with pytest.raises(ValueError, match="holds activations at"):
        slc.CrosscoderTrainingRunner(other)


def test_the_plan_counts_the_layers_up_to_each_models_hook(trained):
    sizes = plan(trained[0].cfg, measure_time=False).models
    assert 3 * sizes[0].n_params_to_hook == sizes[1].n_params_to_hook


def test_a_family_is_compared_two_by_two_at_their_hooks(tmp_path):
    family = {"chat": "tiny-null", "more_model_names": ["tiny-chat"], "model_hook_names": [HOOKS[0], *HOOKS]}
    runner = slc.CrosscoderTrainingRunner(own_hooks_config(tmp_path, **family), override_dataset=rows())
    crosscoder = runner.run()
    compared = ComparedSources.of(crosscoder, ("tiny-base", "tiny-chat"))
    assert compared.crosscoder.cfg.metadata.hook_name == JOINED
    diagnosis = slc.diagnose(crosscoder, runner.held_out_data(4))
    assert list(diagnosis.pairs) == ["model_1", "model_2"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_hook_names": [*HOOKS, HOOKS[0]]}, "names 3 hooks for 2 models, tiny-base, tiny-chat. Name one per"),
        ({"model_hook_names": None, "hook_name": f"{JOINED}|{HOOKS[0]}"}, "names 3 hooks for 2 models"),
        ({"hook_name": HOOKS[0]}, "Give either hook_name="),
        ({"hook_names": HOOKS}, "Give either hook_names="),
        ({"model_hook_names": ["+".join(HOOKS), HOOKS[0]]}, "names several hooks per model"),
    ],
)
def test_hooks_that_do_not_fit_are_refused(tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
        own_hooks_config(tmp_path, **fields)


def test_the_command_line_takes_a_hook_per_model():
    words = [
        "--d_model",
        "96",
        "--d_sae",
        "32",
        "--k",
        "4",
        "--model_name",
        "tiny-base",
        "--chat_model_name",
        "tiny-chat",
    ]
    parsed = train_parser("train").parse_args([*words, "--model_hook_names", *HOOKS])
    assert parsed.cfg.hook_name == JOINED


def test_one_hook_for_all_models_is_the_ordinary_run(tmp_path):
    assert own_hooks_config(tmp_path, model_hook_names=[HOOKS[0]] * 2).hook_name == HOOKS[0]
