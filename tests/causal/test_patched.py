"""Laws of patching in a `with` block: it is what hooks written by hand would do, and it leaves nothing behind."""

from contextlib import contextmanager
from inspect import unwrap

import pytest
import torch
from transformer_lens import HookedTransformer

import sae_lens_crosscoder as slc
from tests.causal.conftest import HOOK, LATENTS, random_crosscoder, thresholds
from tests.crosscoders.conftest import as_lists
from tests.models.small_models import random_hooked_transformer
from tests.reference.causal import edited

TOLERANCE = {"rtol": 0, "atol": 1e-5}


def by_hand(case, *args, positions=None, read_by="own", **kwargs):
    """Logits (batch, pos, model, vocab): both models run to the hook, edited number by number, and run on."""
    weights = as_lists(case.crosscoder)
    h = [case.activation(m) for m in (0, 1)]
    new = [part.clone() for part in h]
    for prompt, position in torch.ones_like(case.tokens).nonzero().tolist():
        if positions is None or positions[prompt, position]:
            token = [part[prompt, position].tolist() for part in h]
            for m, row in enumerate(edited(token, weights, thresholds(case.crosscoder), *args, **kwargs)):
                new[m][prompt, position] = torch.tensor(row)
    if read_by == "chat":
        new[1] = new[0]
    return torch.stack([case.logits(m, new[m]) for m in (0, 1)], dim=2)


def hooks_of(pair):
    """Names of hook points with hooks on the pair or its models, and of hooks with patch state."""
    hosts = (pair, *pair.members)
    hooked = [name for host in hosts for name, point in host.hook_dict.items() if point.fwd_hooks or point.ctx]
    return [*hooked, *pair.patch_state.unedited, *(["tokens read"] * pair.patch_state.n_tokens_read)]


class TestOnThePair:
    @pytest.mark.parametrize("how", ["replace", "add", "ablate", "scale", "steer", "reconstruct"])
    @pytest.mark.parametrize("model", [None, "base", "chat"])
    def test_it_equals_two_models_run_by_hand(self, case, how, model):
        arguments = {"coefficient": 1.5} | ({"max_activation": [3.0, 1.0, 2.0]} if how == "steer" else {})
        with slc.patched(case.pair, case.crosscoder, LATENTS, how, model=model, **arguments):
            logits = case.pair(case.tokens)
        models = {None: (0,) if how in ("replace", "add") else (0, 1), "base": (0,), "chat": (1,)}[model]
        torch.testing.assert_close(logits, by_hand(case, LATENTS, how, models, **arguments), **TOLERANCE)
        assert (logits - case.pair(case.tokens)).abs().max() > 1e-2

    @pytest.mark.parametrize("how", ["replace", "add"])
    def test_the_chat_model_reads_the_patched_base_activation(self, case, how):
        with slc.patched(case.pair, case.crosscoder, LATENTS, how, read_by="chat"):
            logits = case.pair(case.tokens)
        torch.testing.assert_close(logits, by_hand(case, LATENTS, how, (0,), read_by="chat"), **TOLERANCE)

    def test_only_the_marked_positions_are_edited(self, case):
        positions = torch.zeros_like(case.tokens, dtype=torch.bool)
        positions[0, 3] = positions[1, 5:9] = True
        with slc.patched(case.pair, case.crosscoder, LATENTS, "add", positions=positions):
            logits = case.pair(case.tokens)
        torch.testing.assert_close(logits, by_hand(case, LATENTS, "add", (0,), positions=positions), **TOLERANCE)
        assert torch.equal(logits[2], case.pair(case.tokens)[2])

    def test_the_error_alone_goes_on_when_all_latents_and_biases_are_ablated(self, case):
        with slc.patched(case.pair, case.crosscoder, None, "ablate", with_bias=True):
            logits = case.pair(case.tokens)
        stacked = case.pair.activations(case.tokens, HOOK)
        error = stacked - case.crosscoder.decode(case.crosscoder.encode(stacked))
        expected = [case.logits(m, part) for m, part in enumerate(case.crosscoder.layout.split(error))]
        torch.testing.assert_close(logits, torch.stack(expected, dim=2), **TOLERANCE)

    def test_an_empty_set_changes_nothing_and_hands_over_the_plain_base_activation(self, case):
        with slc.patched(case.pair, case.crosscoder, []):
            patched = case.pair(case.tokens)
        assert torch.equal(patched, case.pair(case.tokens))
        with slc.patched(case.pair, case.crosscoder, [], read_by="chat"):
            logits = case.pair(case.tokens)
        assert torch.equal(logits[:, :, 1], case.logits(1, case.activation(0)))

    def test_run_with_cache_sees_the_edited_activation(self, case):
        with slc.patched(case.pair, case.crosscoder, LATENTS, "ablate", model="base"):
            _, cache = case.pair.run_with_cache(case.tokens, names_filter=[HOOK])
        base, chat = cache[HOOK].chunk(2, dim=-1)
        assert torch.equal(chat, case.activation(1))
        assert not torch.equal(base, case.activation(0))


class TestNesting:
    def test_nested_patches_add_up(self, case):
        with slc.patched(case.pair, case.crosscoder, LATENTS[:1]), slc.patched(case.pair, case.crosscoder, LATENTS[1:]):
            nested = case.pair(case.tokens)
        with slc.patched(case.pair, case.crosscoder, LATENTS):
            torch.testing.assert_close(nested, case.pair(case.tokens), **TOLERANCE)

    def test_each_goes_by_unedited_activations(self, case):
        """By edited ones, the second would find latents that the first had put there or taken away."""
        with slc.patched(case.pair, case.crosscoder, None, "ablate"):
            once = case.pair(case.tokens)
            with slc.patched(case.pair, case.crosscoder, None, "scale", coefficient=2.0):
                torch.testing.assert_close(case.pair(case.tokens), by_hand(case, [], "add", (0,)), **TOLERANCE)
            assert torch.equal(case.pair(case.tokens), once)

    def test_every_forward_pass_goes_by_its_own_activations(self, case):
        with slc.patched(case.pair, case.crosscoder, [1], "add"), slc.patched(case.pair, case.crosscoder, [3], "add"):
            case.pair(case.tokens.flip(0))
            again = case.pair(case.tokens)
        torch.testing.assert_close(again, by_hand(case, [1, 3], "add", (0,)), **TOLERANCE)

    def test_inner_blocks_may_come_and_go_while_the_outer_one_holds(self, case):
        with slc.patched(case.pair, case.crosscoder, LATENTS, "add"):
            before = case.pair(case.tokens)
            for latents in ([1], [3]):
                with slc.patched(case.pair, case.crosscoder, latents, "add"):
                    expected = by_hand(case, [*LATENTS, *latents], "add", (0,))
                    torch.testing.assert_close(case.pair(case.tokens), expected, **TOLERANCE)
            assert torch.equal(case.pair(case.tokens), before)


class TestLeaving:
    def test_no_hook_is_left(self, case):
        before = case.pair(case.tokens)
        with slc.patched(case.pair, case.crosscoder, LATENTS, read_by="chat"):
            case.pair(case.tokens)
            assert hooks_of(case.pair)
        assert hooks_of(case.pair) == []
        assert torch.equal(case.pair(case.tokens), before)

    def test_no_hook_is_left_after_an_error_inside(self, case):
        def fail(value, hook):
            raise RuntimeError("on purpose")

        with (
            pytest.raises(RuntimeError, match="on purpose"),
            slc.patched(case.pair, case.crosscoder, LATENTS),
            slc.patched(case.pair, case.crosscoder, [1]),
        ):
            case.pair.run_with_hooks(case.tokens, fwd_hooks=[(HOOK, fail)])
        assert hooks_of(case.pair) == []

    def test_no_hook_is_left_after_a_refusal(self, case):
        wrong = torch.ones(1, 2, dtype=torch.bool)
        with (
            pytest.raises(ValueError, match=r"positions has shape \(1, 2\), but the tokens have shape \(3, 12\)"),
            slc.patched(case.pair, case.crosscoder, LATENTS, positions=wrong),
        ):
            case.pair(case.tokens)
        assert hooks_of(case.pair) == []

    def test_what_a_model_hands_to_the_hook_is_not_edited(self, case):
        seen = []
        with slc.patched(case.pair, case.crosscoder, LATENTS, "ablate"):
            for member in case.pair.members:
                member.add_hook(HOOK, lambda value, hook: seen.append((value, value.clone())))
            case.pair(case.tokens)
        case.pair.base.reset_hooks()
        case.pair.chat.reset_hooks()
        assert len(seen) == 4
        assert all(torch.equal(value, copy) for value, copy in seen)


class TestOneModelAlone:
    @pytest.mark.parametrize(("m", "name"), enumerate(["base", "chat"]))
    def test_steering_equals_a_hook_written_by_hand(self, case, m, name):
        amounts = torch.tensor([3.0, 1.0, 2.0])
        direction = sum(a * case.crosscoder.decoders[m][j] for a, j in zip(amounts, LATENTS, strict=True))
        arguments = {"model": name, "coefficient": -0.5, "max_activation": amounts}
        with slc.patched(case.pair.members[m], case.crosscoder, LATENTS, "steer", **arguments) as model:
            logits = model(case.tokens)
        expected = case.logits(m, case.activation(m) - 0.5 * direction)
        torch.testing.assert_close(logits, expected, **TOLERANCE)
        assert hooks_of(case.pair) == []

    @pytest.mark.parametrize("cached", [True, False])
    def test_steering_holds_while_the_model_generates(self, case, cached):
        prompt, chat = case.tokens[:1, :4], case.pair.chat
        options = {"do_sample": False, "stop_at_eos": False, "verbose": False, "use_past_kv_cache": cached}
        if isinstance(chat, HookedTransformer):  # which pads while it generates, and so wants a tokenizer's side
            options["prepend_bos"] = False
        with slc.patched(chat, case.crosscoder, [4], "steer", model="chat", max_activation=2.0):
            written = chat.generate(prompt, max_new_tokens=6, **options)
            expected = prompt
            for _ in range(6):  # every token from a full forward pass
                expected = torch.cat([expected, chat(expected)[:, -1:].argmax(dim=-1)], dim=1)
        assert torch.equal(written, expected)
        assert not torch.equal(written, chat.generate(prompt, max_new_tokens=6, **options))

    @pytest.mark.parametrize("how", ["replace", "add", "ablate", "scale", "reconstruct"])
    def test_what_needs_both_models_is_refused(self, case, how):
        with (
            pytest.raises(ValueError, match=rf"how='{how}'.*needs the pair.*HookedModelPair"),
            slc.patched(case.pair.chat, case.crosscoder, LATENTS, how, model="chat"),
        ):
            pytest.fail("it was accepted")

    def test_it_must_be_said_which_model_it_is(self, case):
        with (
            pytest.raises(ValueError, match="model='base' or model='chat'"),
            slc.patched(case.pair.chat, case.crosscoder, LATENTS, "steer", max_activation=1.0),
        ):
            pytest.fail("it was accepted")


class TestRefusals:
    def enter(self, *args, **kwargs):
        with slc.patched(*args, **kwargs):
            pytest.fail("it was accepted")

    def enter_unchecked(self, *args, **kwargs):
        with contextmanager(unwrap(slc.patched))(*args, **kwargs):  # past the check of types
            pytest.fail("it was accepted")

    def test_an_unknown_hook(self, case):
        crosscoder = random_crosscoder((32, 32), dtype="float32")
        crosscoder.cfg.metadata.hook_name = "blocks.0.hook_resid_pots"
        for host, more in ((case.pair, {}), (case.pair.chat, {"how": "steer", "model": "chat", "max_activation": 1.0})):
            with pytest.raises(ValueError, match=r"no common hook 'blocks\.0\.hook_resid_pots'"):
                self.enter(host, crosscoder, LATENTS, **more)

    def test_a_crosscoder_that_names_no_hook(self, case):
        crosscoder = random_crosscoder((32, 32), dtype="float32")
        crosscoder.cfg.metadata.hook_name = None
        with pytest.raises(ValueError, match="config has no hook_name"):
            self.enter(case.pair, crosscoder, LATENTS)

    def test_a_crosscoder_of_another_width(self, case):
        crosscoder = random_crosscoder((16, 32), dtype="float32")
        with pytest.raises(ValueError, match=r"of widths \(16, 32\), but the models have widths \(32, 32\) at "):
            self.enter(case.pair, crosscoder, LATENTS, "ablate")
        with (
            pytest.raises(ValueError, match="decoder has width 16, but the model's activation has width 32"),
            slc.patched(case.pair.chat, crosscoder, LATENTS, "steer", model="base", max_activation=1.0),
        ):
            case.pair.chat(case.tokens)
        assert hooks_of(case.pair) == []

    def test_a_mask_of_numbers(self, case):
        with pytest.raises(ValueError, match=r"positions must be a bool mask, but its dtype is torch\.int64"):
            self.enter_unchecked(case.pair, case.crosscoder, LATENTS, positions=torch.ones_like(case.tokens))

    def test_a_crosscoder_of_another_pair(self, case):
        crosscoder = random_crosscoder((32, 32), dtype="float32")
        crosscoder.cfg.metadata.model_name = crosscoder.cfg.metadata.chat_model_name = "another"
        pair = slc.HookedModelPair(*case.pair.members, model_names=("a", "b"))
        with pytest.raises(ValueError, match="trained on another and another, but the pair is a and b"):
            self.enter(pair, crosscoder, LATENTS)

    def test_handing_over_between_widths(self):
        pair = slc.HookedModelPair(random_hooked_transformer(16, seed=1), random_hooked_transformer(24, seed=2))
        crosscoder = random_crosscoder((16, 24), dtype="float32")
        with pytest.raises(ValueError, match="Only models of one width"):
            self.enter(pair, crosscoder, LATENTS, "ablate", read_by="chat")
        with pytest.raises(ValueError, match="Unknown read_by='base'"):
            self.enter_unchecked(pair, crosscoder, LATENTS, "ablate", read_by="base")
