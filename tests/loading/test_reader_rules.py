"""Laws that hold for the readers of all layouts, whatever the layout."""

import json
import warnings

import pytest
import torch
import yaml
from safetensors.torch import save_file

import sae_lens_crosscoder as slc
from tests.loading.foreign_files import (
    D_SAE,
    HOOKS,
    LAYOUTS,
    PAIRS,
    WIDTH,
    Layout,
    crosscode,
    crosscode_cfg,
    dedicated,
    dedicated_cfg,
    gemma,
    gemma_cfg,
    main_tensors,
    nanda,
    openmoss,
    openmoss_cfg,
    tokens,
)

ALL = pytest.mark.parametrize("name", LAYOUTS)


def texts(folder, **options):
    """The crosscoder, and the text of all warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        crosscoder = slc.load(folder, **options)
    return crosscoder, " ".join(str(warning.message) for warning in caught)


def edit(folder, layout, **keys):
    """Write keys into the layout's config, or into a new one."""
    name = next(iter(layout.settings or {}), "config.json")
    path, is_yaml = folder / name, name.endswith("yaml")
    settings = {} if not path.exists() else (yaml.safe_load if is_yaml else json.loads)(path.read_text())
    settings = (settings or {}) | keys
    path.write_text(yaml.safe_dump(settings) if is_yaml else json.dumps(settings))


def flat(settings):
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            yield from (inner if key == "trainer" else f"{key}.{inner}" for inner in flat(value))
        else:
            yield key


# Keys of the configs in LAYOUTS that a reader uses or checks; it must name all others in the warning.
READ = {
    *("activation_dim", "dict_size", "num_layers", "layer", "lm_name", "hook_point", "k"),
    *("n_models", "n_hookpoints", "d_model", "n_latents", "activation_fn.classname"),
    *("use_encoder_bias", "use_decoder_bias", "n_a", "n_b"),
    *("type", "architecture", "width", "l0", "affine_connection", "model_name"),
    *("hf_hook_point_in", "hf_hook_point_out", "hook_points", "sae_type", "expansion_factor"),
    *("act_fn", "norm_activation", "sparsity_include_decoder_norm"),
}


@ALL
def test_every_config_key_is_read_or_named_in_the_warning(tmp_path, name):
    layout = LAYOUTS[name]
    folder = layout.write(tmp_path)
    edit(folder, layout, one_more=3, nested={"two_more": [1]})
    _, text = texts(folder, **layout.options)
    named = text.partition("not read from the config: ")[2].split("\n")[0].split(", ")
    assert {"one_more", "nested.two_more"} <= set(named)
    keys = {key for settings in (layout.settings or {}).values() for key in flat(settings)}
    assert keys <= READ | set(named)
    assert not READ & set(named)


@pytest.mark.parametrize("said", ["BatchTopKCrossCoder", "TopkActivation", "jump_relu", "JumpReLUActivationFunction"])
@pytest.mark.parametrize("key", ["dict_class", "activation_fn", "architecture", "trainer_class", "cfg"])
@pytest.mark.parametrize("name", ["A", "kissane", "nanda", "crosscode", "openmoss"])
def test_a_config_that_says_topk_or_jumprelu_beside_no_threshold_is_refused(tmp_path, name, key, said):
    layout = LAYOUTS[name]
    folder = layout.write(tmp_path)
    edit(folder, layout, **{key: said if key != "cfg" else {"activation_fn": {"classname": said}}})
    with pytest.raises(ValueError, match=r"holds no threshold, although its config says .*theta=.*allow_relu=True"):
        slc.load(folder, **layout.options)
    relu, text = texts(folder, allow_relu=True, **layout.options)
    assert relu.cfg.architecture() == "crosscoder"
    assert "every positive latent is active" in text
    if layout.is_pair:
        assert texts(folder, theta=0.5, **layout.options)[0].cfg.architecture() == "jumprelu_crosscoder"


@pytest.mark.parametrize(
    ("tensors", "name", "settings", "said"),
    [
        (dedicated(), "model.pt", dedicated_cfg(), "k=3"),
        (main_tensors(), "model_final.pt", {"config.json": {"trainer": {"k": 100}}}, "k=100"),
        (crosscode(2, 1), "model.pt", crosscode_cfg(2, 1, "BatchTopkActivation", k_per_example=4), "BatchTopk"),
        (crosscode(2, 3), "model.pt", crosscode_cfg(2, 3, "GroupMaxActivation", k_groups=3), "GroupMax"),
        (openmoss(), "sae_weights.safetensors", openmoss_cfg("topk"), "act_fn=topk"),
        (openmoss(), "sae_weights.safetensors", openmoss_cfg("jumprelu"), "act_fn=jumprelu"),
    ],
)
def test_files_whose_selection_leaves_no_threshold_are_refused(tmp_path, tensors, name, settings, said):
    with pytest.raises(ValueError, match=f"holds no threshold, although its config says .*{said}"):
        slc.load(Layout(tensors, name, settings).write(tmp_path))


def test_a_gemma_scope_2_file_without_its_threshold_is_refused(tmp_path):
    tensors = {name: tensor for name, tensor in gemma().items() if name != "params_layer_2.threshold"}
    with pytest.raises(ValueError, match=r"Incomplete crosscoder: .* has no params_layer_2.threshold"):
        slc.load(Layout(tensors, "", gemma_cfg(), format="gemma_scope_2").write(tmp_path))


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("how", ["config", "option"])
def test_the_order_of_the_models_is_believed(tmp_path, name, how):
    """The other order swaps the models' halves: rows, norms and with them Delta_norm."""
    layout = LAYOUTS[name]
    usual, text = texts(layout.write(tmp_path / "usual"), **layout.options)
    is_dedicated = layout.format == "dedicated_features"
    assert ("0 is chat and 1 is base: the two were swapped" in text) == is_dedicated
    other, folder = "base_chat" if is_dedicated else "chat_base", layout.write(tmp_path / "other")
    if how == "config":
        edit(folder, layout, model_order=other)
    swapped, text = texts(folder, **layout.options, **({"model_order": other} if how == "option" else {}))
    assert "on the model axis" not in text
    x, ids = tokens(), base_first(usual)
    torch.testing.assert_close(swapped.encode(x.flip(1).flatten(1)), usual.encode(x.flatten(1))[:, ids])
    out = swapped(x.flip(1).flatten(1)).unflatten(1, (2, WIDTH)).flip(1).flatten(1)
    torch.testing.assert_close(out, usual(x.flatten(1)))
    expected = 1 - slc.delta_norm(usual.decoder_norms)[ids]
    torch.testing.assert_close(slc.delta_norm(swapped.decoder_norms), expected)


def base_first(crosscoder):
    """Ids that exchange the latents of base with those of chat."""
    partition = getattr(crosscoder.cfg, "partition", None)
    ids = list(range(crosscoder.cfg.d_sae))
    if partition is None:
        return ids
    n, total = partition.n_base, partition.n_exclusive
    return ids[n:total] + ids[:n] + ids[total:]


@pytest.mark.parametrize(
    ("keys", "order", "expected"),
    [
        ({"base_model": "b", "chat_model": "c"}, None, ("b", "c")),
        ({"base_model": "b", "chat_model": "c"}, "chat_base", ("b", "c")),
        ({"model_names": ["first", "second"]}, None, ("first", "second")),
        ({"model_names": ["first", "second"]}, "chat_base", ("second", "first")),
        ({"model_a": "first", "model_b": "second"}, "base_chat", ("first", "second")),
        ({"model_a": "first", "model_b": "second"}, "chat_base", ("second", "first")),
    ],
)
@pytest.mark.parametrize("name", ["A", "B", "kissane", "nanda", "crosscode", "dedicated", "dedicated-batchtopk"])
def test_names_of_models_in_the_config_are_believed(tmp_path, name, keys, order, expected):
    layout = LAYOUTS[name]
    folder = layout.write(tmp_path)
    edit(folder, layout, **keys, **({} if order is None else {"model_order": order}))
    if name == "B":  # its lm_name is the paper's, and would win
        edit(folder, layout, trainer={"layer": 13, "k": 7})
    if order is None and layout.format == "dedicated_features" and "model_names" in keys:
        expected = expected[::-1]  # the file's order is chat, base
    crosscoder, text = texts(folder, **layout.options)
    metadata = crosscoder.cfg.metadata
    assert (metadata.model_name, metadata.chat_model_name) == expected
    assert "model_names" not in text


@pytest.mark.parametrize("name", PAIRS)
def test_the_papers_models_are_not_assumed_for_other_widths(tmp_path, name):
    layout = LAYOUTS[name]
    if layout.settings and "lm_name" in json.dumps(layout.settings):
        layout = Layout(layout.tensors, layout.name, {}, layout.format)
    crosscoder, text = texts(layout.write(tmp_path), **layout.options)
    assert crosscoder.cfg.metadata.model_name is None
    assert "gemma" not in text
    assert "model_names is unknown" in text


@pytest.mark.parametrize("name", [*PAIRS])
@pytest.mark.parametrize("keys", [{"hook_points": list(HOOKS)}, {"layers": [3, 7]}])
def test_a_config_that_names_several_hooks_is_not_a_pair_of_models(tmp_path, name, keys):
    layout = LAYOUTS[name]
    folder = layout.write(tmp_path)
    edit(folder, layout, **keys)
    with pytest.raises(ValueError, match=r"is a crosscoder over several hooks, .* and not over a pair of models"):
        slc.load(folder, **layout.options)


# Files without a name that says which of several is the crosscoder.
REFUSED_WITH_A_COPY = ("nanda", "openmoss", "openmoss-jumprelu")


@ALL
def test_a_second_weights_file_makes_no_other_crosscoder_of_it(tmp_path, name):
    """Refused by the name of the layout, or read as without it: never half of two crosscoders."""
    layout = LAYOUTS[name]
    folder = layout.write(tmp_path)
    original, _ = texts(folder, **layout.options)
    for file in list(layout.files())[:1]:
        (folder / f"copy_{file}").write_bytes((folder / file).read_bytes())
    if name in REFUSED_WITH_A_COPY:
        with pytest.raises(ValueError, match=rf"contains 2 crosscoders of the layout {layout.format}, "):
            slc.load(folder, **layout.options)
        return
    again, _ = texts(folder, **layout.options)
    for key, tensor in original.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor)


@pytest.mark.parametrize("missing", range(4))
def test_one_file_of_four_is_never_taken_for_the_crosscoder(tmp_path, missing):
    layout = LAYOUTS["gemma"]
    folder = layout.write(tmp_path)
    with pytest.raises(ValueError, match=r"is one of 4 files of a crosscoder \(gemma_scope_2 .*: load its folder"):
        slc.load(folder / f"params_layer_{missing}.safetensors")
    (folder / f"params_layer_{missing}.safetensors").unlink()
    with pytest.raises(ValueError, match=r"others are missing|names 4 layers|from the other tensors"):
        slc.load(folder)


@pytest.mark.filterwarnings("ignore:.*was loaded as .*, with assumed settings:UserWarning")
def test_shards_with_an_index_are_read_whole(tmp_path):
    layout = LAYOUTS["A"]
    names = list(layout.tensors)
    shards = {"model-00001-of-00002.safetensors": names[:2], "model-00002-of-00002.safetensors": names[2:]}
    for file, part in shards.items():
        save_file({name: layout.tensors[name] for name in part}, tmp_path / file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {name: file for file, part in shards.items() for name in part}}))
    whole = slc.load(layout.write(tmp_path / "whole"))
    assert torch.equal(slc.load(tmp_path).W_dec, whole.W_dec)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match=r"has no file 'model-00002-of-00002.safetensors', which .*index.json names"):
        slc.load(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": "../x.safetensors"}}))
    with pytest.raises(ValueError, match=r"has no file '\.\./x.safetensors'"):
        slc.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "key"),
    [("nanda", "hook_point"), ("gemma", "model_name"), ("openmoss", "hook_points"), ("A", "model_order")],
)
def test_a_config_of_wrong_types_is_refused_by_the_name_of_the_file(tmp_path, name, key):
    layout = LAYOUTS[name]
    folder = layout.write(tmp_path)
    edit(folder, layout, **{key: 3})
    with pytest.raises(ValueError, match=rf"The config beside {tmp_path}.* has {key}=3, expected"):
        slc.load(folder, **layout.options)


def test_two_config_files_that_disagree_are_named(tmp_path):
    folder = LAYOUTS["A"].write(tmp_path)
    (folder / "trainer_config.json").write_text(json.dumps({"trainer": {"layer": 3, "lr": 1e-4}}))
    (folder / "config.json").write_text(json.dumps({"layer": 5}))
    crosscoder, text = texts(folder)
    assert crosscoder.cfg.metadata.hook_name == "blocks.3.hook_resid_post"
    assert "config.json and trainer_config.json disagree on 'layer', 5 and 3: the latter is used" in text


@pytest.mark.parametrize("text", ["a: &x [1]\nb: *x", "a: !!python/object/apply:os.system ['true']", "[1", "a: .nan"])
def test_yaml_that_is_not_plain_is_refused(tmp_path, text):
    folder = Layout(nanda(), "17.pt", format="crosscode").write(tmp_path)
    (folder / "model_cfg.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"model_cfg.yaml is not a plain YAML config"):
        slc.load(folder)


def test_the_sizes_are_those_of_the_fixtures():
    assert {layout.n_sources for layout in LAYOUTS.values()} == {2, 3, 4, 6}
    assert D_SAE != WIDTH  # or swapped axes would go unnoticed


@pytest.mark.parametrize("name", [name for name, layout in LAYOUTS.items() if layout.settings])
def test_an_object_in_the_place_of_a_name_is_refused_or_told_and_never_assumed_away(tmp_path, name):
    """Of every text in every config file: the file is named by a ValueError, or the key by a warning."""
    written = LAYOUTS[name].write(tmp_path / "whole")
    for path in [path for path in written.iterdir() if path.suffix == ".json"]:
        settings = json.loads(path.read_text())
        for key in [key for key, value in settings.items() if isinstance(value, str)]:
            path.write_text(json.dumps(settings | {key: {"a": 1}}))
            try:
                _, warned = texts(written, **LAYOUTS[name].options)
            except ValueError as error:
                warned = str(error).replace(str(written), key)
            assert key in warned
        path.write_text(json.dumps(settings))


def test_a_hook_that_is_an_object_is_refused(tmp_path):
    layout = next(each for each in LAYOUTS.values() if "hook_point" in json.dumps(each.settings or {}))
    (file,) = [name for name, each in layout.settings.items() if "hook_point" in each]
    layout.write(tmp_path)
    (tmp_path / file).write_text(json.dumps(layout.settings[file] | {"hook_point": {"a": 1}}))
    with pytest.raises(ValueError, match=r"has an object as hook_point, expected a name or names"):
        slc.load(tmp_path, **layout.options)
