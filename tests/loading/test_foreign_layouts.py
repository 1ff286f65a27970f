"""Every layout of other people's comes out as the function that its own code computes, and goes back."""

import json
import warnings
from functools import partial

import pytest
import torch
from sae_lens import SAE
from safetensors.torch import load_file

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.crosscoders.canonical import Weights, fold_activation_scales
from sae_lens_crosscoder.crosscoders.origin import is_assumed
from sae_lens_crosscoder.crosscoders.scores import SCORES
from sae_lens_crosscoder.loading import hub as module
from tests.crosscoders.conftest import batchtopk_crosscoder, stacked_batch, step
from tests.loading.foreign_files import (
    D_SAE,
    KISSANE_SCALES,
    LAYOUTS,
    PAIRS,
    WIDTH,
    Layout,
    batchtopk,
    main_tensors,
    nanda,
    normalised,
    tokens,
)

assumed = pytest.mark.filterwarnings("ignore:.*was loaded as .*, with assumed settings:UserWarning")


def assert_close(actual, expected, tolerance=1e-6):
    """Within `tolerance` of the largest value."""
    assert actual.shape == expected.shape
    assert (actual.double() - expected.double()).abs().max() <= tolerance * expected.abs().max()


def load(folder, layout, **options):
    """Load with the options that the layout needs."""
    return slc.load(folder, **layout.options, **options)


def assert_same_function(crosscoder, layout, tolerance=1e-6):
    scores, reconstruction, delta = layout.expected()
    x = tokens(layout.n_sources).flatten(1).to(crosscoder.W_dec)
    feature_acts = crosscoder.encode(x)
    assert 0.1 < (scores > 0).float().mean() < 0.9  # so that the threshold is tried
    assert torch.equal(feature_acts > 0, scores > 0)
    assert_close(feature_acts, scores, tolerance)
    assert_close(crosscoder.decode(feature_acts), reconstruction.flatten(1), tolerance)
    if layout.is_pair:
        assert_close(slc.delta_norm(crosscoder.decoder_norms), delta, tolerance)


@assumed
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_it_computes_what_its_own_code_computes(tmp_path, name, dtype):
    layout = LAYOUTS[name]
    crosscoder = load(layout.write(tmp_path), layout, dtype=dtype)
    assert crosscoder.W_dec.dtype == getattr(torch, dtype)
    # Where there is a normaliser, the authors' code adds 1e-8 to its scale, and we do not.
    exact = dtype == "float64" and crosscoder.cfg.activation_means is None
    assert_same_function(crosscoder, layout, 1e-12 if exact else 1e-6)
    torch.testing.assert_close(crosscoder.decoder_norms.sum(dim=-1), torch.ones_like(crosscoder.b_enc))
    has_threshold = layout.options.get("theta") or any("threshold" in tensor for tensor in layout.tensors)
    assert crosscoder.cfg.architecture() == ("jumprelu_crosscoder" if has_threshold else "crosscoder")
    assert (crosscoder.cfg.score, crosscoder.cfg.score_norm) == ("sum", layout.score_norm)
    assert crosscoder.layout.n_sources == layout.n_sources


@assumed
@pytest.mark.parametrize("name", LAYOUTS)
def test_what_was_converted_is_an_ordinary_crosscoder_folder(tmp_path, name):
    crosscoder = load(LAYOUTS[name].write(tmp_path / "theirs"), LAYOUTS[name])
    crosscoder.save_model(tmp_path / "ours")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is assumed any more
        again = slc.load(tmp_path / "ours")
    assert again.cfg.to_dict() == crosscoder.cfg.to_dict()
    x = tokens(LAYOUTS[name].n_sources).flatten(1)
    assert torch.equal(again.encode(x), crosscoder.encode(x))


@assumed
@pytest.mark.parametrize("name", [name for name in PAIRS if LAYOUTS[name].kind != "decoupled"])
def test_it_goes_back_to_the_authors_layout(tmp_path, name):
    """As a file that the reference reads as the same function, and so do we."""
    layout = LAYOUTS[name]
    crosscoder = load(layout.write(tmp_path / "theirs"), layout)
    folder = slc.convert.save_dictionary_learning(crosscoder, tmp_path / "back", k=7)
    back = Layout(load_file(folder / "model.safetensors"))
    scores, reconstruction, delta = layout.expected()
    if "jumprelu" not in name:  # whose thresholds are made equal by scaling latents and their norms
        assert_close(back.expected()[0], scores)
    for actual, expected in zip(back.expected()[1:], (reconstruction, delta), strict=True):
        assert_close(actual, expected)
    again = slc.load(folder)
    assert_same_function(again, layout)
    assert again.cfg.score_norm == layout.score_norm
    settings = json.loads((folder / "config.json").read_text())
    assert (settings["activation_dim"], settings["dict_size"], settings["num_layers"]) == (WIDTH, D_SAE, 2)
    has_threshold = crosscoder.cfg.architecture() == "jumprelu_crosscoder"
    assert settings.get("k") == again.cfg.metadata.k == (7 if has_threshold else None)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("scales", [(1.0, 1.0), (0.5, 2.0)])
def test_one_of_ours_is_the_same_function_in_the_authors_layout(tmp_path, score, scales):
    crosscoder = batchtopk_crosscoder(d_models=(WIDTH, WIDTH), k=3, score=score)
    crosscoder.input_scales.copy_(torch.tensor(scales))
    for seed in (1, 2):
        crosscoder.training_forward_pass(step(stacked_batch(2 * WIDTH, 50, seed)))
    crosscoder.save_inference_model(tmp_path / "ours")
    ours = slc.load(tmp_path / "ours")
    folder = slc.convert.save_dictionary_learning(ours, tmp_path / "theirs")
    theirs = Layout(load_file(folder / "model.safetensors"))
    scores, reconstruction, delta = theirs.expected()
    x = tokens().flatten(1).to(ours.W_dec)
    assert 0 < (scores > 0).float().mean() < 0.9
    assert torch.equal(ours.encode(x) > 0, scores > 0)
    assert_close(ours(x), reconstruction.flatten(1))
    assert_close(slc.delta_norm(ours.decoder_norms), delta)
    assert theirs.tensors["k"] == 3


@assumed
def test_scales_go_back_as_one_per_model_and_none_as_no_tensors(tmp_path):
    """Versions of the authors' library have one factor or one per model, and load a file without any."""
    for name in ("A", "D", "E", "kissane"):
        crosscoder = load(LAYOUTS[name].write(tmp_path / name), LAYOUTS[name])
        folder = slc.convert.save_dictionary_learning(crosscoder, tmp_path / f"{name}-back")
        tensors = load_file(folder / "model.safetensors")
        if name == "A":
            assert not [tensor for tensor in tensors if "activation" in tensor]
            continue
        assert tensors["activation_global_scale"].shape == (2,)
        derived = tensors["target_rms"] / tensors["activation_std"].square().sum(dim=-1).sqrt()  # as their code does
        torch.testing.assert_close(derived, tensors["activation_global_scale"])
        assert slc.load(folder).cfg.activation_scales == pytest.approx(crosscoder.cfg.activation_scales)


FACTS = ("model_name", "chat_model_name", "hook_name", "dropped_tokens", "max_norms", "max_norm_ratio", "k")


@assumed
@pytest.mark.parametrize("name", [name for name in PAIRS if LAYOUTS[name].kind != "decoupled"])
def test_an_export_keeps_the_facts_and_whether_they_were_assumed(tmp_path, name):
    layout = LAYOUTS[name]
    crosscoder = load(layout.write(tmp_path / "theirs"), layout)
    metadata = crosscoder.cfg.metadata
    metadata.model_name, metadata.chat_model_name, metadata.hook_name = (
        "some/base",
        "some/chat",
        "blocks.2.hook_mlp_out",
    )
    metadata.dropped_tokens, metadata.max_norms, metadata.max_norm_ratio, metadata.k = "BOS", [3.0, 4.0], 10.0, 7
    metadata.assumptions = ["hook_name='blocks.2.hook_mlp_out'"]
    again = slc.load(slc.convert.save_dictionary_learning(crosscoder, tmp_path / "back"))
    expected = [getattr(metadata, fact) for fact in FACTS]
    if crosscoder.cfg.architecture() == "crosscoder":  # of which there is no k
        expected[-1] = None
    assert [getattr(again.cfg.metadata, fact) for fact in FACTS] == expected
    assert (is_assumed(again, "hook_name"), is_assumed(again, "model_names")) == (True, False)
    assert again.cfg.partition == crosscoder.cfg.partition
    scales = crosscoder.cfg.activation_scales  # which their layout holds in float32
    assert again.cfg.activation_scales == (None if scales is None else pytest.approx(scales, rel=1e-6))
    twice = slc.load(slc.convert.save_dictionary_learning(again, tmp_path / "twice"))
    assert twice.cfg.to_dict() == again.cfg.to_dict()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("hook_name", 3, "sae_lens_crosscoder.hook_name=3, of another type"),
        ("model_names", ["a"], "model_names that are not two models"),
        ("max_norms", [1.0], "expected a positive number for every model"),
        ("max_norm_ratio", -1.0, "expected a positive number for every model"),
        ("n_exclusive", [1, 1], "trainer_config.json disagree. W_dec is not 0 in the other model's half"),
        ("n_exclusive", [9, 1], r"n_exclusive=\[9, 1\]"),
    ],
)
@assumed
def test_exported_facts_that_do_not_fit_are_refused(tmp_path, key, value, message):
    folder = slc.convert.save_dictionary_learning(slc.load(LAYOUTS["B"].write(tmp_path / "theirs")), tmp_path / "back")
    path = folder / "trainer_config.json"
    settings = json.loads(path.read_text())
    settings["sae_lens_crosscoder"][key] = value
    path.write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=message):
        slc.load(folder)


@pytest.mark.parametrize(
    ("tensors", "code_normalization", "expected"),
    [("B", "SAE", "l2"), ("C-sae", "sae", "l2"), ("C-sae", "CROSSCODER", None), ("B", "OTHER", None)],
)
@assumed
def test_the_name_of_the_norm_in_the_config_is_believed_unless_the_tensors_disagree(
    tmp_path, tensors, code_normalization, expected
):
    folder = LAYOUTS[tensors].write(tmp_path)
    (folder / "config.json").write_text(json.dumps({"code_normalization": code_normalization}))
    if expected is None:
        with pytest.raises(ValueError, match=r"which is unknown, or differs from the tensors' code_normalization_id"):
            slc.load(folder)
    else:
        assert slc.load(folder).cfg.score_norm == expected


@assumed
def test_the_normaliser_is_kept_for_what_is_measured_in_the_trained_space(tmp_path):
    for name, scales in (("D", (0.4, 0.4)), ("E", (0.4, 0.15))):
        crosscoder = slc.load(LAYOUTS[name].write(tmp_path / name))
        mean = LAYOUTS[name].tensors["activation_mean"]
        assert crosscoder.cfg.activation_scales == pytest.approx(scales)
        assert crosscoder.cfg.activation_means == tuple(map(tuple, mean.tolist()))
        assert torch.equal(crosscoder.activation_means, mean.flatten())
    without = slc.load(LAYOUTS["B"].write(tmp_path / "B"))
    assert torch.equal(without.activation_means, torch.zeros(2 * WIDTH))


@assumed
@pytest.mark.parametrize("std", [torch.ones(2, WIDTH), torch.full((2, WIDTH), (2 * WIDTH) ** -0.5)])
def test_a_scale_of_one_is_read_where_dividing_by_coordinate_would_be_the_same_or_was_not_done(tmp_path, std):
    layout = Layout(normalised(1.0, std=std))
    assert_same_function(slc.load(layout.write(tmp_path)), layout)


@assumed
@pytest.mark.parametrize("missing", ["threshold", "never estimated", "nan"])
def test_a_threshold_from_the_caller_stands_in_for_one_that_was_never_estimated(tmp_path, missing):
    tensors = batchtopk({"never estimated": -1.0, "nan": float("nan")}.get(missing, 0.0))
    if missing == "threshold":
        del tensors["threshold"]
    folder = Layout(tensors).write(tmp_path)
    assert_same_function(slc.load(folder, theta=3.0), LAYOUTS["B"])
    relu = slc.load(folder, allow_relu=True)
    assert_same_function(relu, LAYOUTS["A"])
    assert any("every positive latent is active" in assumption for assumption in relu.cfg.metadata.assumptions)


@assumed
def test_a_latent_that_writes_nothing_is_silent(tmp_path):
    tensors = LAYOUTS["C-sae"].tensors
    tensors = tensors | {"decoder.weight": tensors["decoder.weight"] * (torch.arange(D_SAE) != 4)[:, None]}
    crosscoder = slc.load(Layout(tensors).write(tmp_path / "theirs"))
    x = tokens().flatten(1)
    for found in (crosscoder, slc.load(slc.convert.save_dictionary_learning(crosscoder, tmp_path / "back"))):
        assert found.encode(x)[:, 4].abs().max() == 0
        assert torch.isfinite(found(x)).all()
        assert slc.delta_norm(found.decoder_norms)[4].isnan()


@assumed
def test_kissanes_scales_are_folded_unless_the_caller_has_others(tmp_path):
    folder = LAYOUTS["kissane"].write(tmp_path)
    folded, raw = load(folder, LAYOUTS["kissane"]), slc.load(folder, activation_scales=(1.0, 1.0))
    assert folded.cfg.activation_scales == KISSANE_SCALES
    x = tokens()
    scaled = (x * torch.tensor(KISSANE_SCALES)[:, None]).flatten(1)
    assert_close(raw.encode(scaled), folded.encode(x.flatten(1)))
    torch.testing.assert_close(slc.delta_norm(folded.decoder_norms), slc.delta_norm(raw.decoder_norms))
    base, chat = folded.layout.norms(folded.W_dec).unbind(dim=-1)
    file_base, file_chat = LAYOUTS["kissane"].tensors["W_dec"].norm(dim=-1).unbind(dim=-1)
    torch.testing.assert_close(chat / base, 1.1297 * file_chat / file_base, rtol=1e-4, atol=0)


def test_a_format_can_be_said_instead_of_recognised(tmp_path):
    folder = LAYOUTS["kissane"].write(tmp_path)
    with pytest.warns(UserWarning, match="was loaded as crosscode"):
        assert slc.load(folder, format="crosscode").cfg.activation_scales is None


PAPER_WIDTH = {
    "dictionary_learning": Layout(main_tensors(width=2304, d_sae=3), settings={"config.json": {"lr": 1e-4}}),
    "kissane": Layout(nanda(width=2304, d_sae=3), "cc_weights.pt", format="kissane"),
    "crosscode": Layout(nanda(width=2304, d_sae=3), "17.pt", {"17_cfg.json": {"lr": 1e-4}}, format="crosscode"),
}


@pytest.mark.parametrize("name", PAPER_WIDTH)
@assumed
def test_the_papers_models_are_assumed_where_the_widths_fit_and_that_is_said_once_and_kept(tmp_path, name):
    folder = PAPER_WIDTH[name].write(tmp_path)
    hook_name = f"blocks.{'13.hook_resid_post' if name == 'dictionary_learning' else '14.hook_resid_pre'}"
    with pytest.warns(UserWarning, match="with assumed settings") as caught:
        metadata = slc.load(folder).cfg.metadata
    assert len(caught) == 1
    assert (metadata.model_name, metadata.chat_model_name) == ("google/gemma-2-2b", "google/gemma-2-2b-it")
    assert metadata.hook_name == hook_name
    assert metadata.converted_from == name
    crosscoder = slc.load(tmp_path, model_names=("a", "b"))
    assert (is_assumed(crosscoder, "hook_name"), is_assumed(crosscoder, "model_names")) == (True, False)
    for subject in ("0 is base and 1 is chat", hook_name, "google/gemma-2-2b-it", "dropped_tokens", "activations"):
        assert sum(subject in assumption for assumption in metadata.assumptions) == 1, subject
    assert all(assumption in str(caught[0].message) for assumption in metadata.assumptions)


@assumed
def test_what_the_caller_says_is_not_assumed(tmp_path):
    said = {"hook_name": "blocks.1.hook_mlp_out", "model_names": ("a", "b"), "dropped_tokens": "BOS"}
    metadata = slc.load(LAYOUTS["B"].write(tmp_path), **said, activation_scales=(0.5, 2.0)).cfg.metadata
    assert (metadata.model_name, metadata.chat_model_name) == ("a", "b")
    assert (metadata.hook_name, metadata.dropped_tokens) == ("blocks.1.hook_mlp_out", "BOS")
    assert not [a for a in metadata.assumptions if any(word in a for word in ("hook", "names", "dropped", "scaled"))]


@assumed
def test_another_pair_in_the_trainers_config_leaves_the_models_open(tmp_path):
    """Two names joined by a dash cannot be taken apart, and the paper's would be wrong."""
    trainer = {"trainer": {"layer": 8, "lm_name": "meta-llama/Llama-3.2-1B-Instruct-meta-llama/Llama-3.2-1B"}}
    tensors = main_tensors(width=2304, d_sae=3)
    metadata = slc.load(Layout(tensors, settings={"config.json": trainer}).write(tmp_path)).cfg.metadata
    assert (metadata.model_name, metadata.hook_name) == (None, "blocks.8.hook_resid_post")


@assumed
@pytest.mark.parametrize("name", LAYOUTS)
def test_saelens_reads_it_with_our_converter(tmp_path, name):
    folder = LAYOUTS[name].write(tmp_path / "owner" / "name")
    converter = partial(slc.loading.crosscoder_huggingface_loader, **LAYOUTS[name].options)
    crosscoder = SAE.from_pretrained(str(folder), ".", converter=converter)
    assert_same_function(crosscoder, LAYOUTS[name])


@assumed
@pytest.mark.parametrize("sae_id", [".", "layer"])
def test_saelens_reads_it_from_the_hub_with_options(tmp_path, monkeypatch, sae_id):
    asked = []
    LAYOUTS["B"].write(tmp_path / sae_id)

    def download(repo_id, allow_patterns, force_download):
        asked.append((repo_id, force_download, any(name.endswith("model.safetensors") for name in allow_patterns)))
        return str(tmp_path)

    monkeypatch.setattr(module, "snapshot_download", download)
    converter = partial(slc.loading.crosscoder_huggingface_loader, theta=4.0, hook_name="here")
    crosscoder = SAE.from_pretrained("owner/name", sae_id, converter=converter, dtype="float64", force_download=True)
    assert asked == [("owner/name", True, False), ("owner/name", True, True)]  # the config, and then the weights
    assert_same_function(crosscoder, Layout(batchtopk(4.0)))
    assert crosscoder.cfg.metadata.hook_name == "here"


def test_the_fold_of_scales_and_means_is_undone_by_its_inverse():
    generator = torch.Generator().manual_seed(2)
    shapes = ((7, 4), (4,), (4, 7), (7,))
    weights = Weights(*(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes))
    layout, scales = slc.stacking.StackedLayout((3, 4)), torch.tensor([0.25, 3.0], dtype=torch.float64)
    means = torch.randn(7, generator=generator, dtype=torch.float64)
    folded = fold_activation_scales(weights, layout, scales, means)
    again = fold_activation_scales(folded, layout, 1 / scales, -layout.expand(scales) * means)
    for actual, expected in zip(again, weights, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(folded.b_enc, weights.b_enc)
