"""Crosscoders over several hooks: every part of the stack keeps its name, and what is no crosscoder is refused."""

import warnings

import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.crosscoders.inference import hook_name_of
from tests.loading.foreign_files import (
    D_SAE,
    HOOKS,
    LAYOUTS,
    NORMS,
    Layout,
    crosscode,
    crosscode_cfg,
    dedicated,
    dedicated_cfg,
    gemma,
    gemma_cfg,
    openmoss,
    openmoss_cfg,
)
from tests.loading.foreign_files import tokens as stacked_tokens
from tests.models.small_models import random_hooked_transformer, some_tokens

SEVERAL = [name for name, layout in LAYOUTS.items() if not layout.is_pair]


def loaded(folder, layout):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return slc.load(layout.write(folder), **layout.options)


def refusal(tmp_path, layout, **options):
    with pytest.raises(ValueError) as caught:  # noqa: PT011  (the callers look at the text)
        slc.load(layout.write(tmp_path), **options)
    return str(caught.value)


@pytest.mark.parametrize("name", SEVERAL)
def test_it_has_sources_in_place_of_a_hook_and_a_pair(tmp_path, name):
    crosscoder = loaded(tmp_path, LAYOUTS[name])
    metadata = crosscoder.cfg.metadata
    assert len(metadata.sources) == crosscoder.layout.n_sources == LAYOUTS[name].n_sources
    hooks = [source["hook_name"] for source in metadata.sources][: len(crosscoder.layout.hook_names)]
    assert metadata.hook_name == (None if None in hooks else "+".join(hooks))
    assert len(crosscoder.layout.hook_names) == len(set(crosscoder.layout.hook_names)) > 1
    assert not crosscoder.layout.is_pair
    with pytest.raises(ValueError, match=r"cannot be set: this .* reads \d activations of one token"):
        slc.load(tmp_path, hook_name="here", **LAYOUTS[name].options)


def test_the_configs_order_of_layers_names_the_sources(tmp_path):
    layers = (12, 5, 15, 9)
    crosscoder = loaded(tmp_path, Layout(gemma(), "", gemma_cfg(layers), format="gemma_scope_2"))
    hooks = [source["hook_name"] for source in crosscoder.cfg.metadata.sources]
    assert hooks == [f"blocks.{layer}.hook_resid_post" for layer in layers]
    assert crosscoder.cfg.metadata.model_name == "google/gemma-3-270m-pt"
    assert 0 < crosscoder.cfg.metadata.frac_written_to_earlier_layers < 0.01


def test_a_list_of_hooks_is_read_as_the_short_form(tmp_path):
    points = [f"model.layers.{layer}.output" for layer in (5, 9, 12, 15)]
    cfg = gemma_cfg(hf_hook_point_in=points, hf_hook_point_out=points)
    first = loaded(tmp_path / "list", Layout(gemma(), "", cfg, format="gemma_scope_2"))
    second = loaded(tmp_path / "short", LAYOUTS["gemma"])
    assert first.cfg.metadata.sources == second.cfg.metadata.sources


def test_a_latent_of_gemma_scope_2_reads_one_layer(tmp_path):
    crosscoder = loaded(tmp_path, LAYOUTS["gemma"])
    reads = crosscoder.layout.norms(crosscoder.W_enc.T) > 0
    assert torch.equal(reads.sum(dim=-1), torch.ones(12, dtype=torch.long))
    assert reads.long().argmax(dim=-1).tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3


@pytest.mark.parametrize(
    ("tensors", "cfg", "message"),
    [
        (gemma(), gemma_cfg(type="clt"), "is a Gemma Scope 2 clt, not a crosscoder"),
        (gemma(), gemma_cfg(architecture="standard"), "only jump_relu"),
        (gemma(), gemma_cfg(affine_connection=True), "affine_connection from input to output"),
        (gemma(), gemma_cfg(width=13), "width=13, but the tensors have 12"),
        (gemma(), gemma_cfg(layers=(5, 9, 12)) | {}, "width=9|names 3 layers"),
        (gemma(), gemma_cfg(layers=(5, 5, 9, 12)), "names 3 layers"),
        (gemma(), gemma_cfg(hf_hook_point_out="model.layers.{6,9,12,15}.output"), "is a transcoder"),
        (gemma(), gemma_cfg(hf_hook_point_in="x", hf_hook_point_out="x"), "expected the outputs of blocks"),
        (gemma(1), gemma_cfg(layers=(5,)), "expected a crosscoder over at least 2"),
        (gemma() | {"params_layer_1.affine_skip_connection": torch.ones(5, 5)}, gemma_cfg(), "affine connection"),
        (gemma() | {"params_layer_1.w_dec": torch.ones(3, 5)}, gemma_cfg(), r"shape \(3, 5\), expected \(3, 4, 5\)"),
        (gemma() | {"params_layer_1.other": torch.ones(3)}, gemma_cfg(), "unknown tensors, params_layer_1.other"),
    ],
)
def test_what_is_no_crosscoder_of_gemma_scope_2_is_refused(tmp_path, tensors, cfg, message):
    layout = Layout(tensors, "", cfg, format="gemma_scope_2")
    with pytest.raises(ValueError, match=message):
        slc.load(layout.write(tmp_path))


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        (openmoss_cfg(sae_type="clt"), "is a Llamascopium clt, not a crosscoder"),
        (openmoss_cfg(hook_points=list(HOOKS[:1])), "reads 1 hook of one model: it is no crosscoder"),
        (openmoss_cfg(hook_points=[*HOOKS, "x"]), "3 heads, but the config beside it names 4 hook_points|unknown tens"),
        (openmoss_cfg(d_model=6), "d_model=6, but the tensors have 5"),
        (openmoss_cfg(expansion_factor=2), "expansion_factor=2, expected 1.8"),
        (openmoss_cfg(sparsity_include_decoder_norm=False), "sparsity_include_decoder_norm=False"),
        (openmoss_cfg(norm_activation="token-wise"), "a factor that depends on the token"),
        (openmoss_cfg(norm_activation="dataset-wise"), "expected a positive number for every hook"),
        (openmoss_cfg(act_fn="gelu"), "act_fn='gelu', which does not fit"),
        ({}, "is not a crosscoder folder: cfg.json is missing"),
    ],
)
def test_what_llamascopium_cannot_convert_is_refused(tmp_path, cfg, message):
    with pytest.raises(ValueError, match=message):
        slc.load(Layout(openmoss(), "sae_weights.safetensors", cfg).write(tmp_path))


def test_gates_per_hook_are_refused_until_latents_may_be_split(tmp_path):
    layout = LAYOUTS["openmoss-jumprelu"]
    assert "takes its threshold hook by hook" in refusal(tmp_path, layout)
    split = loaded(tmp_path, layout)
    assert split.cfg.d_sae == 3 * D_SAE
    assert torch.equal((split.decoder_norms > 0).sum(dim=-1), torch.ones(3 * D_SAE, dtype=torch.long))


def test_scales_of_hooks_are_kept(tmp_path):
    crosscoder = loaded(tmp_path, LAYOUTS["openmoss-jumprelu"])
    assert crosscoder.cfg.activation_scales == pytest.approx([5**0.5 / norm for norm in NORMS])


def test_two_hooks_of_one_model_are_not_taken_for_base_and_chat(tmp_path):
    layout = Layout(crosscode(1, 2), "model.pt", crosscode_cfg(1, 2), format="crosscode", n_sources=2)
    crosscoder = loaded(tmp_path / "two", layout)
    assert (crosscoder.layout.n_models, crosscoder.layout.hook_names) == (1, ("hook_0", "hook_1"))
    with pytest.raises(ValueError, match="its file does not name the hooks"):
        hook_name_of(crosscoder)
    alone = Layout(crosscode(1, 1), "model.pt", crosscode_cfg(1, 1), format="crosscode")
    assert "it is an SAE, and no crosscoder" in refusal(tmp_path / "one", alone)


def test_a_published_crosscoder_over_layers_reads_the_model_itself(tmp_path):
    crosscoder = loaded(tmp_path, Layout(gemma(2, width=16), "", gemma_cfg((0, 1)), format="gemma_scope_2"))
    model, tokens = random_hooked_transformer(16, seed=1), some_tokens()
    hooks = [source["hook_name"] for source in crosscoder.cfg.metadata.sources]
    rows = torch.cat([model.run_with_cache(tokens)[1][hook] for hook in hooks], dim=-1).flatten(0, 1)
    of_model = slc.EvalData(pair=slc.HookedModelPair(model), tokens=tokens, max_norm_ratio=None)
    of_rows = slc.EvalData(activations=rows, max_norm_ratio=None)
    tables = [slc.diagnose(crosscoder, data).latents for data in (of_model, of_rows)]
    assert tables[0].equals(tables[1])
    assert set(tables[0].hook_read) == set(hooks)


def test_crosscode_names_models_and_hooks(tmp_path):
    cfg = crosscode_cfg(2, 3)
    cfg["model_cfg.yaml"] |= {"hookpoints": list(HOOKS), "model_names": ["base", "chat"]}
    sources = loaded(tmp_path, Layout(crosscode(2, 3), "model.pt", cfg)).cfg.metadata.sources
    assert [tuple(source.values()) for source in sources] == [(m, hook) for m in ("base", "chat") for hook in HOOKS]
    cfg["model_cfg.yaml"] |= {"hookpoints": list(HOOKS[:2])}
    assert "names 2 hooks, but the tensors have 3" in refusal(tmp_path, Layout(crosscode(2, 3), "model.pt", cfg))


def test_biases_that_are_off_are_zero_and_missing_ones_are_refused(tmp_path):
    tensors = {name: tensor for name, tensor in crosscode(2, 1).items() if name != "b_enc_L"}
    cfg = crosscode_cfg(2, 1)
    assert "has no b_enc" in refusal(tmp_path, Layout(tensors, "model.pt", cfg))
    cfg["model_cfg.yaml"]["use_encoder_bias"] = False
    assert loaded(tmp_path, Layout(tensors, "model.pt", cfg)).b_enc.abs().max() == 0


def test_diagnose_describes_the_parts_and_judges_no_latent(tmp_path):
    crosscoder = loaded(tmp_path, LAYOUTS["gemma"])
    diagnosis = slc.diagnose(crosscoder, slc.EvalData(activations=stacked_tokens(4, n=600).flatten(1)), min_active=1)
    latents = diagnosis.latents
    norms = torch.tensor(latents[[f"dec_norm_{name}" for name in crosscoder.layout.names]].to_numpy())
    torch.testing.assert_close(norms, crosscoder.decoder_norms.double(), rtol=1e-5, atol=1e-6)
    assert set(latents["verdict"]) <= {"undefined", "dead", "rare"}
    assert latents["delta_norm"].isna().all()
    assert "two models at one hook" in str(diagnosis.conclusion)
    assert len([name for name in diagnosis.manifest["fve"] if name.startswith("blocks.")]) == 4


def test_a_pair_has_no_activations_for_it(tmp_path):
    pair = slc.HookedModelPair.from_pretrained("tiny-base", "tiny-chat")
    with pytest.raises(ValueError, match="was trained on google/gemma-3-270m-pt, but the pair"):
        slc.diagnose(loaded(tmp_path, LAYOUTS["gemma"]), slc.EvalData(pair=pair, tokens=some_tokens()))


@pytest.mark.parametrize("n_a", [0, 2])
def test_the_partition_of_a_dedicated_feature_crosscoder_is_kept(tmp_path, n_a):
    layout = Layout(dedicated(n_a, 3), "model.pt", dedicated_cfg(n_a, 3), options={"theta": 1.5})
    crosscoder = loaded(tmp_path, layout)
    assert (crosscoder.cfg.n_base_exclusive, crosscoder.cfg.n_chat_exclusive) == (3, n_a)
    delta = slc.delta_norm(crosscoder.decoder_norms)
    assert delta[:3].tolist() == [0] * 3
    assert delta[3 : 3 + n_a].tolist() == [1] * n_a
    assert ((delta[3 + n_a :] > 0) & (delta[3 + n_a :] < 1)).all()


@pytest.mark.parametrize(
    ("tensors", "cfg", "message"),
    [
        (dedicated(), dedicated_cfg(n_a=3), "n_a=3, but the tensors have 2"),
        (dedicated() | {"dec_mask": torch.ones(D_SAE, 2)}, dedicated_cfg(), "must be 0 or 1, equal, and confine"),
        (dedicated() | {"enc_mask": dedicated()["enc_mask"] / 2}, dedicated_cfg(), "must be 0 or 1, equal"),
        (dedicated() | {"enc_mask": torch.ones(D_SAE, 2)}, dedicated_cfg(), r"enc_mask has shape \(9, 2\)"),
    ],
)
def test_masks_that_are_no_partition_are_refused(tmp_path, tensors, cfg, message):
    assert_refused = pytest.raises(ValueError, match=message)
    with assert_refused:
        slc.load(Layout(tensors, "model.pt", cfg).write(tmp_path), theta=1.0)


def test_weights_that_the_masks_forbid_are_zero_as_in_its_own_code_and_that_is_said(tmp_path):
    layout = LAYOUTS["dedicated"]
    tensors = layout.tensors | {"W_enc": layout.tensors["W_enc"] + 0.1}
    edited = Layout(tensors, "model.pt", layout.settings, "dedicated_features", options=layout.options)
    with pytest.warns(UserWarning, match="weights that the masks forbid are not 0 in the file"):
        crosscoder = slc.load(edited.write(tmp_path), **layout.options)
    scores, reconstruction, _ = edited.expected()
    torch.testing.assert_close(crosscoder.encode(stacked_tokens().flatten(1)).double(), scores, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        crosscoder(stacked_tokens().flatten(1)).double(), reconstruction.flatten(1), rtol=1e-5, atol=1e-5
    )
