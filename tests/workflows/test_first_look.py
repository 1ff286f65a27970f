"""Laws of a first look: planted changes are found at their hook, on their prompts, and nothing where nothing is."""

import copy

import pandas as pd
import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.causal import FirstLook
from sae_lens_crosscoder.models.tiny import dialogues, matched_prompts
from sae_lens_crosscoder.workflows import first_look
from tests.models.adapters import save_adapter, save_base, save_merged
from tests.models.small_models import gemma2

PROMPTS = [messages[:1] for messages in dialogues(72, 0, "held_out")]
TABLES = ("hooks", "prompts", "groups", "positions", "directions")


def look(pair, data=PROMPTS[:24], **options):
    return first_look(pair, data, **{"n_resamples": 100, **options})


def tiny(name="tiny-base"):
    return slc.models.load_tiny_model(name)


def without_attention_after(block):
    """The base model whose later blocks read each token alone, so that a change stays at its token."""
    model = tiny()
    with torch.no_grad():
        for later in model.blocks[block + 1 :]:
            later.attn.W_O.zero_()
    return model


def changed_block(model, block, noise=0.5):
    chat = copy.deepcopy(model)
    with torch.no_grad():
        for name in ("W_in", "W_out"):
            parameter = getattr(chat.blocks[block].mlp, name)
            parameter.add_(noise * parameter.std() * torch.randn_like(parameter) * 4)
    return chat


@pytest.fixture(scope="module")
def pair():
    return slc.HookedModelPair(tiny(), tiny("tiny-chat"), model_names=("tiny-base", "tiny-chat"))


@pytest.fixture(scope="module")
def result(pair):
    return look(pair, PROMPTS)


@pytest.mark.parametrize("block", [0, 1, 3])
def test_a_change_of_one_block_is_recommended_at_that_block(block):
    base = without_attention_after(block)
    found = look(slc.HookedModelPair(base, changed_block(base, block)))
    assert found.recommendation.hook_name == f"blocks.{block}.hook_resid_post"
    assert found.hooks.share_last.tolist() == pytest.approx([float(b >= block) for b in range(4)], abs=1e-3)
    assert found.hooks.share_all.tolist() == pytest.approx([float(b >= block) for b in range(4)], abs=1e-3)
    assert found.hooks.difference_last[:block].tolist() == [0.0] * block
    assert (found.hooks.difference_last[block:] > 0).all()
    assert found.recommendation.confidence == "high" or found.manifest["n_changed"] < 8


def test_the_built_in_pair_is_recommended_its_last_block(result):
    """Chat training changed all blocks, so the share rises to the end, and the unembedding, so it stays below 1."""
    assert result.recommendation.hook_name == "blocks.3.hook_resid_post"
    assert result.hooks.share_last.is_monotonic_increasing
    assert 0.9 < result.hooks.share_last.iloc[-1] < 1
    assert result.groups.kl_nats.idxmax() == "template"
    assert str(result).startswith("Recommended hook: blocks.3.hook_resid_post (confidence: high).")


def test_prompts_that_changed_are_found_without_labels(pair):
    """Chat training taught the model to count; both models know where people live."""
    count, where = matched_prompts("count", 8, seed=0).positive, matched_prompts("where", 8, seed=0).positive
    width = max(count.shape[1], where.shape[1])
    tokens = torch.full((16, width), pair.tokenizer.pad_token_id)
    tokens[:8, : count.shape[1]], tokens[8:, : where.shape[1]] = count, where
    mask = torch.arange(width) < torch.tensor([count.shape[1]] * 8 + [where.shape[1]] * 8)[:, None]
    found = look(pair, slc.EvalData(pair=pair, tokens=tokens, token_mask=mask))
    assert sorted(found.prompts.index[found.prompts.changed]) == list(range(8))
    assert "8 of 16 prompts changed" in found.manifest["split"]
    assert found.contrast.positive.tolist() == [True] * 8 + [False] * 8
    assert found.contrast.positions.tolist() == [count.shape[1] - 1] * 8 + [where.shape[1] - 1] * 8
    assert found.contrast.held_out.sum() == 8
    assert list(found.groups.index) == ["all"]  # no groups were given


def test_padding_and_other_prompts_change_nothing(pair, result):
    for i in (0, 7):
        alone = look(pair, PROMPTS[i : i + 1])
        assert alone.prompts.kl_nats[0] == pytest.approx(result.prompts.kl_nats[i], rel=1e-4)
        assert alone.prompts.kl_nats_tokens[0] == pytest.approx(result.prompts.kl_nats_tokens[i], rel=1e-4)
        assert alone.recommendation.confidence == "low"
        assert alone.contrast is None


def test_the_whole_difference_of_one_prompt_does_what_the_patch_does(pair):
    alone = look(pair, PROMPTS[:1])
    rows = alone.directions[alone.directions.direction == "changed"].set_index("hook_name")
    for hook_name, row in rows.iterrows():
        assert row.share_kl == pytest.approx(alone.hooks.share_last[hook_name], abs=1e-4)
        assert row.strength == pytest.approx(1.0, abs=1e-4)


def test_directions_are_those_of_the_baselines(pair, result):
    hook = result.recommendation.hook_name
    assert len(result.vectors) == len(result.directions)
    assert result.directions.norm.tolist() == pytest.approx(result.vectors.norm(dim=-1).tolist())
    assert list(dict.fromkeys(result.directions.hook_name)) == [hook, result.recommendation.half_hook]
    at_hook = result.directions[result.directions.hook_name == hook]
    assert {"changed - unchanged", "changed", "user", "component 1"} <= set(at_hook.direction)
    contrast = result.contrast
    stacked = pair.activations(contrast.tokens, hook)[torch.arange(len(contrast.tokens)), contrast.positions]
    base, chat = stacked.chunk(2, dim=-1)
    difference = chat - base
    expected = difference[contrast.positive].mean(dim=0) - difference[~contrast.positive].mean(dim=0)
    assert torch.allclose(result.vectors[0], expected, atol=1e-3)
    assert at_hook.raised.str.len().min() > 0


def test_the_most_changed_positions_are_shown_with_both_models_next_tokens(result):
    top = result.positions.iloc[0]
    assert result.positions.kl_nats.is_monotonic_decreasing
    assert top.kl_nats == result.prompts.kl_nats.max()
    assert top.group == "template"
    assert top.token == "model"
    assert top.context.endswith("<sot>")
    assert top.base_next != top.chat_next


def test_identical_models_and_shared_weights_are_refused():
    with pytest.raises(ValueError, match="identical on all"):
        look(slc.HookedModelPair(tiny(), tiny()))
    model = tiny()
    with pytest.raises(ValueError, match="share"):
        look(slc.HookedModelPair(model, model))


def test_nothing_is_recommended_where_the_models_hardly_differ():
    base = tiny()
    found = look(slc.HookedModelPair(base, changed_block(base, 2, noise=1e-3)))
    assert found.recommendation.hook_name is None
    assert "hardly differ" in found.recommendation.reason
    assert "Recommended hook: none" in str(found)
    assert len(found.directions) == len(found.vectors) == 0


def test_a_change_of_the_unembedding_is_at_no_hook(tmp_path):
    base, chat = tiny(), tiny()
    with torch.no_grad():
        chat.unembed.W_U.add_(torch.randn_like(chat.unembed.W_U))
    found = look(slc.HookedModelPair(base, chat))
    assert found.recommendation.hook_name is None
    assert "unembedding" in found.recommendation.reason
    assert FirstLook.load(found.save(tmp_path)).recommendation.reason == found.recommendation.reason


def test_a_saved_look_is_loaded_as_it_was(result, tmp_path):
    loaded = FirstLook.load(result.save(tmp_path / "look"))
    for name in TABLES:
        pd.testing.assert_frame_equal(getattr(loaded, name), getattr(result, name))
    assert loaded.recommendation == result.recommendation
    assert loaded.manifest == result.manifest
    assert torch.equal(loaded.vectors, result.vectors)
    assert torch.equal(loaded.contrast.tokens, result.contrast.tokens)
    with pytest.raises(ValueError, match="has no first_look"):
        FirstLook.load(tmp_path)


def test_an_adapter_gives_the_look_of_its_merged_copy(tmp_path):
    base = save_base(tmp_path / "base")
    adapter = save_adapter(tmp_path / "adapter", base)
    merged = save_merged(tmp_path / "merged", base, adapter)
    looks = [
        look(slc.HookedModelPair.from_pretrained(base, chat, model_class_name="TransformerBridge"), PROMPTS[:6])
        for chat in (f"{base}+adapter={adapter}", merged)
    ]
    assert looks[0].hooks.share_last.tolist() == pytest.approx(looks[1].hooks.share_last.tolist(), abs=1e-3)
    assert looks[0].hooks.share_all.tolist() == pytest.approx(looks[1].hooks.share_all.tolist(), abs=1e-3)
    assert looks[0].hooks.difference_all.iloc[1] == 0  # below the adapters
    assert looks[0].recommendation.hook_name == looks[1].recommendation.hook_name


def test_hosts_without_a_logit_lens_are_looked_at_too():
    from sae_lens.load_model import HookedProxyLM

    tokenizer = slc.models.tiny_tokenizer()
    models = [HookedProxyLM(gemma2(noise=noise), tokenizer) for noise in (0, 0.1)]
    found = look(slc.HookedModelPair(*models, tokenizer=tokenizer), PROMPTS[:6])
    assert list(found.hooks.index) == [f"model.layers.{block}" for block in range(3)]
    assert set(found.directions.raised) == {""}


def test_files_and_lists_are_the_same_and_other_pairs_are_refused(pair, tmp_path):
    (tmp_path / "requests.txt").write_text("\n".join(messages[0]["content"] for messages in PROMPTS[:24]))
    from_file = look(pair, tmp_path / "requests.txt")
    pd.testing.assert_frame_equal(from_file.hooks, look(pair).hooks)
    other = slc.HookedModelPair(tiny(), tiny("tiny-null"))
    data = slc.EvalData(pair=other, tokens=torch.zeros(1, 4, dtype=torch.long))
    with pytest.raises(ValueError, match="another pair"):
        look(pair, data)
    with pytest.raises(ValueError, match="must be above 1"):
        look(pair, max_norm_ratio=0.5)
