"""Laws of the pair: it answers as its models would, one by one, for every kind of model it wraps."""

import warnings
from dataclasses import dataclass
from typing import Any

import pytest
import torch

import sae_lens_crosscoder as slc
from tests.models.small_models import gemma2, llama, save_pair, some_tokens

KINDS = ("HookedTransformer", "TransformerBridge", "TransformerBridge-llama", "AutoModelForCausalLM")


@dataclass(frozen=True)
class Case:
    pair: Any
    early: str
    late: str
    tokens: torch.Tensor

    @property
    def models(self):
        return list(self.pair.members)

    def each(self, hook_name):
        """Every model's activation, read by the model itself."""
        return [model.run_with_cache(self.tokens, names_filter=[hook_name])[1][hook_name] for model in self.models]

    def answers(self, *hooks_of_models):
        """Every model's logits under hooks of its own."""
        pairs = zip(self.models, hooks_of_models, strict=True)
        return torch.stack([model.run_with_hooks(self.tokens, fwd_hooks=hooks) for model, hooks in pairs], dim=2)


@pytest.fixture(scope="module", params=KINDS)
def case(request, tmp_path_factory):
    tokens = some_tokens(d_vocab=200)
    blocks = ("blocks.0.hook_resid_post", "blocks.1.hook_resid_post")
    if request.param == "HookedTransformer":
        return Case(slc.HookedModelPair.from_pretrained("tiny-base", "tiny-chat"), *blocks, tokens)
    class_name, _, architecture = request.param.partition("-")
    folders = save_pair(tmp_path_factory.mktemp("models"), llama if architecture else gemma2)
    pair = slc.HookedModelPair.from_pretrained(*folders, model_class_name=class_name)
    hooks = ("model.layers.0", "model.layers.1") if class_name == "AutoModelForCausalLM" else blocks
    return Case(pair, *hooks, tokens)


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def scaled(factor):
    return lambda value, hook: value * factor


def shifted(amount):
    return lambda value, hook: value + amount


def reverse(value, hook):
    """Across the border between the models: each gets what was the other's."""
    return value.flip(-1)


class TestReading:
    def test_activations_are_the_models_own_side_by_side(self, case):
        for name in (case.early, case.late):
            assert torch.equal(case.pair.activations(case.tokens, name), torch.cat(case.each(name), dim=-1))

    def test_run_with_cache_gives_both_the_answer_and_the_activations(self, case):
        logits, cache = case.pair.run_with_cache(case.tokens, names_filter=[case.late, case.early])
        assert torch.equal(logits, case.answers([], []))
        assert set(cache) == {case.early, case.late}
        for name, value in cache.items():
            assert torch.equal(value, torch.cat(case.each(name), dim=-1))

    def test_a_filter_function_caches_every_stackable_hook_that_it_accepts(self, case):
        _, cache = case.pair.run_with_cache(case.tokens, names_filter=lambda name: name.startswith(case.late))
        assert case.late in cache
        assert case.early not in cache
        assert {value.ndim for value in cache.values()} == {3}

    def test_without_a_filter_everything_stackable_is_cached(self, case):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="run_with_cache: skipped")
            _, cache = case.pair.run_with_cache(case.tokens)
        assert {case.early, case.late} <= set(cache) <= set(case.pair.hook_dict)
        assert torch.equal(cache[case.late], torch.cat(case.each(case.late), dim=-1))

    def test_layout_is_that_of_the_models(self, case):
        widths = tuple(part.shape[-1] for part in case.each(case.late))
        assert case.pair.layout_at(case.late).d_models == widths

    def test_logits_of_each_model_are_its_own(self, case):
        logits = case.pair(case.tokens)
        d_vocab = logits.shape[-1]
        assert logits.shape == (*case.tokens.shape, 2, d_vocab)
        for m, model in enumerate(case.models):
            assert torch.equal(logits[:, :, m], model(case.tokens))

    def test_loss_per_token_is_minus_the_log_probability_of_the_next_token(self, case):
        logits, loss = case.pair(case.tokens, return_type="both", loss_per_token=True)
        assert loss.shape == (len(case.tokens), case.tokens.shape[1] - 1, 2)
        log_probabilities = logits.double().log_softmax(dim=-1)
        for prompt, position, m in [(0, 0, 0), (1, 3, 1), (0, 9, 1)]:
            target = case.tokens[prompt, position + 1]
            expected = -log_probabilities[prompt, position, m, target]
            assert loss[prompt, position, m].item() == pytest.approx(expected.item(), abs=1e-5)

    def test_loss_is_the_mean_over_tokens_of_each_model(self, case):
        per_token = case.pair(case.tokens, return_type="loss", loss_per_token=True)
        torch.testing.assert_close(case.pair(case.tokens, return_type="loss"), per_token.mean(dim=(0, 1)))

    def test_models_run_once_and_stop_after_the_hook(self, case):
        if case.early.startswith("model."):
            pytest.skip("HookedProxyLM has no blocks")
        calls = []
        blocks = [model.blocks[layer] for model in case.models for layer in (0, 1)]
        handles = [block.register_forward_hook(lambda *_, i=i: calls.append(i)) for i, block in enumerate(blocks)]
        case.pair.activations(case.tokens, case.early)
        for handle in handles:
            handle.remove()
        assert calls == [0, 2]  # layer 0 of both models, layer 1 of none


class TestEditing:
    def test_an_edit_continues_in_each_model_as_its_own_hook_would(self, case):
        edited = case.pair.run_with_hooks(case.tokens, fwd_hooks=[(case.late, scaled(0.5))])
        assert torch.equal(edited, case.answers(*[[(case.late, scaled(0.5))]] * 2))
        assert not torch.equal(edited, case.pair(case.tokens))

    def test_an_edit_may_carry_activations_from_one_model_into_the_other(self, case):
        base, chat = case.each(case.late)
        edited = case.pair.run_with_hooks(case.tokens, fwd_hooks=[(case.late, reverse)])
        into_base, into_chat = (lambda value, hook: chat.flip(-1)), (lambda value, hook: base.flip(-1))
        assert torch.equal(edited, case.answers([(case.late, into_base)], [(case.late, into_chat)]))

    def test_edits_at_several_layers_build_on_each_other_in_the_order_of_the_layers(self, case):
        hooks = [(case.late, shifted(1.0)), (case.early, scaled(1.5))]  # named in the wrong order
        edited = case.pair.run_with_hooks(case.tokens, fwd_hooks=hooks)
        assert torch.equal(edited, case.answers(hooks, hooks))

    def test_a_later_hook_sees_what_an_earlier_edit_caused_in_the_other_model(self, case):
        base, chat = case.each(case.early)
        seen = []
        watch = (case.late, lambda value, hook: seen.append(value))
        case.pair.run_with_hooks(case.tokens, fwd_hooks=[watch, (case.early, reverse)])
        expected = []
        for model, value in zip(case.models, (chat.flip(-1), base.flip(-1)), strict=True):
            with model.hooks(fwd_hooks=[(case.early, lambda _, hook, value=value: value)]):
                expected.append(model.run_with_cache(case.tokens, names_filter=[case.late])[1][case.late])
        assert torch.equal(seen[0], torch.cat(expected, dim=-1))

    def test_two_hooks_at_one_place_run_in_the_order_they_were_added(self, case):
        hooks = [(case.late, scaled(2.0)), (case.late, shifted(1.0))]
        assert torch.equal(case.pair.run_with_hooks(case.tokens, fwd_hooks=hooks), case.answers(hooks, hooks))

    def test_a_hook_that_returns_nothing_changes_nothing(self, case):
        watched = case.pair.run_with_hooks(case.tokens, fwd_hooks=[(case.late, lambda value, hook: None)])
        assert torch.equal(watched, case.pair(case.tokens))

    def test_a_hook_is_told_its_name(self, case):
        names = []
        watch = (case.late, lambda value, hook: names.append(hook.name))
        case.pair.run_with_hooks(case.tokens, fwd_hooks=[watch])
        assert names == [case.late]

    def test_run_with_cache_sees_the_edited_value(self, case):
        with case.pair.hooks(fwd_hooks=[(case.early, reverse)]):
            logits, cache = case.pair.run_with_cache(case.tokens, names_filter=[case.early, case.late])
        base, chat = case.each(case.early)
        assert torch.equal(cache[case.early], torch.cat([chat.flip(-1), base.flip(-1)], dim=-1))
        assert torch.equal(logits, case.pair.run_with_hooks(case.tokens, fwd_hooks=[(case.early, reverse)]))

    def test_hooks_are_gone_afterwards(self, case):
        before = case.pair(case.tokens)
        case.pair.run_with_hooks(case.tokens, fwd_hooks=[(case.late, scaled(0.0))])
        assert torch.equal(case.pair(case.tokens), before)

    def test_hooks_are_gone_after_an_error(self, case):
        before = case.pair(case.tokens)
        own = [model(case.tokens) for model in case.models]

        def fail(value, hook):
            raise RuntimeError("on purpose")

        with pytest.raises(RuntimeError, match="on purpose"):
            case.pair.run_with_hooks(case.tokens, fwd_hooks=[(case.early, scaled(0.0)), (case.late, fail)])
        assert torch.equal(case.pair(case.tokens), before)
        for model, expected in zip(case.models, own, strict=True):
            assert torch.equal(model(case.tokens), expected)

    def test_what_was_written_into_a_model_is_gone_after_that_model_failed(self, case):
        before = case.pair(case.tokens)

        def fail(*args):
            raise RuntimeError("on purpose")

        chat = case.pair.chat
        last = chat.model.lm_head if case.early.startswith("model.") else chat.unembed
        handle = last.register_forward_hook(fail)
        with pytest.raises(RuntimeError, match="on purpose"):
            case.pair.run_with_hooks(case.tokens, fwd_hooks=[(case.late, scaled(0.0))])
        handle.remove()
        assert torch.equal(case.pair(case.tokens), before)

    def test_an_edit_of_the_wrong_width_is_refused(self, case):
        with pytest.raises(ValueError, match="the sum of the models' widths"):
            case.pair.run_with_hooks(case.tokens, fwd_hooks=[(case.late, lambda value, hook: value[..., 1:])])

    def test_a_hook_added_for_good_stays_until_reset(self, case):
        before = case.pair(case.tokens)
        case.pair.add_hook(case.late, scaled(0.5))
        edited = case.pair(case.tokens)
        case.pair.reset_hooks()
        assert torch.equal(edited, case.answers(*[[(case.late, scaled(0.5))]] * 2))
        assert torch.equal(case.pair(case.tokens), before)


class TestHookNames:
    def test_the_models_own_hook_points_keep_their_names(self, case):
        for model in case.models:
            for name, hook_point in model.hook_dict.items():
                assert not (hook_point.name or "").startswith("members"), name

    @pytest.mark.parametrize("use", ["activations", "run_with_cache", "run_with_hooks", "hooks", "add_hook", "layout"])
    def test_an_unknown_hook_is_refused_with_the_nearest_names(self, case, use):
        typo = case.late.replace("hook_resid_post", "hook_residpost").replace("layers.1", "layer.1")
        with pytest.raises(ValueError, match=rf"no common hook '{typo}'.*{case.late}"):
            _use(case, use, typo)

    @pytest.mark.parametrize("use", ["activations", "run_with_cache", "run_with_hooks", "hooks", "add_hook", "layout"])
    def test_a_hook_split_by_heads_is_refused_with_the_reason(self, case, use):
        if case.early.startswith("model."):
            pytest.skip("HookedProxyLM has no such hooks")
        names = ["blocks.1.attn.hook_z", "blocks.1.attn.hook_q", "blocks.0.attn.hook_pattern"]
        if "blocks.1.attn.q.hook_out" in case.pair.base.hook_dict:
            names += ["blocks.1.attn.q.hook_out", "blocks.1.attn.o.hook_in"]
        for name in names:
            with pytest.raises(ValueError, match="interleave the models"):
                _use(case, use, name)

    def test_a_hook_that_the_models_do_not_use_is_refused(self, case):
        unused = "model.layers" if case.early.startswith("model.") else "blocks.1.hook_mlp_in"
        assert unused in case.pair.hook_dict
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            with pytest.raises(ValueError, match="did not run"):
                case.pair.activations(case.tokens, unused)
            for hooks in ([(unused, scaled(0.0))], [(unused, scaled(0.0)), (case.late, scaled(0.0))]):
                with pytest.raises((ValueError, RuntimeError), match=r"did not run|gated|no effect|disabled"):
                    case.pair.run_with_hooks(case.tokens, fwd_hooks=hooks)

    def test_backward_hooks_are_refused_rather_than_ignored(self, case):
        with pytest.raises(ValueError, match="no backward hooks"):
            case.pair.run_with_hooks(case.tokens, bwd_hooks=[(case.late, scaled(0.0))])
        with pytest.raises(ValueError, match="no backward hooks"):
            case.pair.add_hook(case.late, scaled(0.0), dir="bwd")

    def test_there_is_no_attribute_that_hosts_would_mistake_for_one_model(self, case):
        assert not hasattr(case.pair, "model")
        assert not hasattr(case.pair, "cfg")

    def test_embedding_is_the_base_models(self, case):
        assert case.pair.W_E.shape[-1] == case.each(case.early)[0].shape[-1]
        assert case.pair.W_E.device == case.tokens.device


def _use(case, use, name):
    match use:
        case "activations":
            case.pair.activations(case.tokens, name)
        case "run_with_cache":
            case.pair.run_with_cache(case.tokens, names_filter=[name])
        case "run_with_hooks":
            case.pair.run_with_hooks(case.tokens, fwd_hooks=[(name, scaled(1.0))])
        case "hooks":
            with case.pair.hooks(fwd_hooks=[(name, scaled(1.0))]):
                pytest.fail("the hook was accepted")
        case "add_hook":
            case.pair.add_hook(name, scaled(1.0))
        case "layout":
            case.pair.layout_at(name)
