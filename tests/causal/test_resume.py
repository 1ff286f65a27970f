"""Laws of resuming: the logits of one hook and one full pass per intervention, and a model left as it was."""

from dataclasses import dataclass
from inspect import unwrap
from typing import Any

import pytest
import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.model_bridge import TransformerBridge

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.causal.forward.later_layers import later_layers_of
from sae_lens_crosscoder.models.tiny import load_tiny_model, tiny_tokenizer
from tests.causal.conftest import gpt2, gpt_neo
from tests.models.small_models import gemma2, random_hooked_transformer, some_tokens

TOLERANCE = {"rtol": 0, "atol": 1e-5}
N_POS, EDITED_FROM = 12, 7
BRIDGES = {"gemma2": gemma2, "gpt2": gpt2, "gpt_neo": gpt_neo}


@dataclass(frozen=True)
class Host:
    model: Any
    tokens: torch.Tensor

    @property
    def hooks(self):
        """Before the first block, after the first and a middle one, and after the last."""
        last = self.model.cfg.n_layers - 1
        return ["blocks.0.hook_resid_pre", *[f"blocks.{layer}.hook_resid_post" for layer in (0, last - 1, last)]]

    def residual(self, hook_name, n_interventions=3, edited_from=EDITED_FROM):
        _, cache = self.model.run_with_cache(self.tokens, names_filter=[hook_name])
        residual = cache[hook_name].repeat(n_interventions, 1, 1, 1)
        generator = torch.Generator().manual_seed(0)
        residual[:, :, edited_from:] += torch.randn(residual[:, :, edited_from:].shape, generator=generator)
        return residual

    def by_hooks(self, hook_name, residual):
        return torch.stack([self.by_hook(hook_name, one) for one in residual])

    def by_hook(self, hook_name, one):
        return self.model.run_with_hooks(self.tokens, fwd_hooks=[(hook_name, lambda value, hook: one)])


@pytest.fixture(scope="module", params=["tiny", "positions", *BRIDGES])
def host(request, tmp_path_factory):
    tokens = some_tokens(n_prompts=3, n_pos=N_POS, d_vocab=200)
    if request.param == "tiny":  # with rotary positions
        return Host(load_tiny_model("tiny-base"), tokens)
    if request.param == "positions":  # learned ones
        return Host(random_hooked_transformer(16, seed=0, d_vocab=200), tokens)
    folder = tmp_path_factory.mktemp(request.param)
    BRIDGES[request.param]().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return Host(TransformerBridge.boot_transformers(str(folder), device="cpu", dtype=torch.float32), tokens)


class TestEqualsPlainHooks:
    @pytest.mark.parametrize("share_prefix", [True, False])
    def test_at_every_layer(self, host, share_prefix):
        positions = torch.zeros_like(host.tokens, dtype=torch.bool)
        positions[0, 9:] = positions[1, EDITED_FROM] = positions[2, 8:10] = True
        for hook_name in host.hooks:
            residual = host.residual(hook_name)
            expected = host.by_hooks(hook_name, residual)[:, positions]
            logits = slc.causal.resume_from(
                host.model, residual, hook_name, host.tokens, positions, share_prefix=share_prefix, batch_size=5
            )
            torch.testing.assert_close(logits, expected, **TOLERANCE)
            assert (expected[0] - expected[1]).abs().max() > 1e-3

    def test_everywhere_when_no_positions_are_named(self, host):
        hook_name = host.hooks[1]
        residual = host.residual(hook_name, edited_from=0)
        logits = slc.causal.resume_from(host.model, residual, hook_name, host.tokens)
        torch.testing.assert_close(logits.unflatten(1, (3, N_POS)), host.by_hooks(hook_name, residual), **TOLERANCE)

    @pytest.mark.parametrize("batch_size", [1, 2, 4, 100])
    def test_whatever_the_batches(self, host, batch_size):
        hook_name = host.hooks[1]
        residual = host.residual(hook_name)
        positions = torch.zeros_like(host.tokens, dtype=torch.bool)
        positions[:, 8:] = True
        logits = slc.causal.resume_from(host.model, residual, hook_name, host.tokens, positions, batch_size=batch_size)
        torch.testing.assert_close(logits, host.by_hooks(hook_name, residual)[:, positions], **TOLERANCE)

    def test_where_logits_are_wanted_before_the_first_edit(self, host):
        hook_name = host.hooks[1]
        residual = host.residual(hook_name, edited_from=10)
        positions = torch.zeros_like(host.tokens, dtype=torch.bool)
        positions[1, 4] = positions[2, 11] = True
        logits = slc.causal.resume_from(host.model, residual, hook_name, host.tokens, positions)
        torch.testing.assert_close(logits, host.by_hooks(hook_name, residual)[:, positions], **TOLERANCE)

    def test_where_one_intervention_edits_one_prompt_earlier(self, host):
        hook_name = host.hooks[1]
        residual = host.residual(hook_name)
        residual[2, 1, 3] += 1.0
        positions = torch.zeros_like(host.tokens, dtype=torch.bool)
        positions[:, 9:] = True
        logits = slc.causal.resume_from(host.model, residual, hook_name, host.tokens, positions)
        torch.testing.assert_close(logits, host.by_hooks(hook_name, residual)[:, positions], **TOLERANCE)

    def test_where_nothing_is_edited_and_for_one_intervention(self, host):
        hook_name = host.hooks[1]
        for n_interventions, edited_from in ((3, N_POS), (1, 4)):
            residual = host.residual(hook_name, n_interventions, edited_from)
            logits = slc.causal.resume_from(host.model, residual, hook_name, host.tokens)
            expected = host.by_hooks(hook_name, residual).flatten(1, 2)
            torch.testing.assert_close(logits, expected, **TOLERANCE)

    def test_with_hooks_of_ones_own_on_later_layers(self, host):
        hook_name, later = host.hooks[1], host.hooks[-1]
        residual = host.residual(hook_name)
        with host.model.hooks(fwd_hooks=[(later, lambda value, hook: value.flip(-1))]):
            logits = slc.causal.resume_from(host.model, residual, hook_name, host.tokens)
            expected = host.by_hooks(hook_name, residual)
        torch.testing.assert_close(logits, expected.flatten(1, 2), **TOLERANCE)
        assert (expected - host.by_hooks(hook_name, residual)).abs().max() > 1e-3


class TestWhatRuns:
    def calls(self, host, share_prefix):
        """How many positions (batch times pos) every block was run on."""
        counts = []
        for layer, component in enumerate(block_parts(host.model)):
            counts.append(0)

            def count(module, args, kwargs, layer=layer):
                value = args[0] if args else next(iter(kwargs.values()))
                counts[layer] += value.shape[0] * value.shape[1]

            self.handles.append(component.register_forward_pre_hook(count, with_kwargs=True))
        positions = torch.zeros_like(host.tokens, dtype=torch.bool)
        positions[:, 8:] = True
        residual = host.residual(host.hooks[1])
        counts[:] = [0] * len(counts)
        slc.causal.resume_from(host.model, residual, host.hooks[1], host.tokens, positions, share_prefix=share_prefix)
        return counts

    @pytest.fixture(autouse=True)
    def _handles(self):
        self.handles = []
        yield
        for handle in self.handles:
            handle.remove()

    def test_layers_before_the_hook_are_not_run_and_the_prefix_once(self, host):
        bridge = isinstance(host.model, TransformerBridge)
        first, *later = self.calls(host, share_prefix=False)
        assert first == bridge  # which is asked, with one token, what its blocks return
        assert set(later) == {3 * 3 * N_POS}
        first, *later = self.calls(host, share_prefix=True)
        assert first == (1 + 3 * EDITED_FROM if bridge else 0)
        assert set(later) == {3 * EDITED_FROM + 3 * 3 * (N_POS - EDITED_FROM)}


class TestLeftAsItWas:
    def test_after_resuming(self, host):
        before = host.model(host.tokens)
        slc.causal.resume_from(host.model, host.residual(host.hooks[2]), host.hooks[2], host.tokens)
        assert torch.equal(host.model(host.tokens), before)

    def test_after_an_error_in_a_later_layer(self, host):
        before = host.model(host.tokens)

        def fail(value, hook):
            raise RuntimeError("on purpose")

        residual = host.residual(host.hooks[2])
        with (
            pytest.raises(RuntimeError, match="on purpose"),
            host.model.hooks(fwd_hooks=[(host.hooks[-1], fail)]),
        ):
            slc.causal.resume_from(host.model, residual, host.hooks[2], host.tokens, share_prefix=False)
        assert torch.equal(host.model(host.tokens), before)
        assert not any("forward" in vars(block) for block in host.model.blocks)

    def test_the_residual_is_not_edited(self, host):
        residual = host.residual(host.hooks[1])
        before = residual.clone()
        slc.causal.resume_from(host.model, residual, host.hooks[1], host.tokens)
        assert torch.equal(residual, before)

    def test_keys_and_values_may_be_used_again(self, host):
        hook_name = host.hooks[1]
        residual = host.residual(hook_name)
        later, everywhere = later_layers_of(host.model, 1), torch.ones(3, N_POS - EDITED_FROM, dtype=torch.bool)
        past = later.keys_and_values(residual[0, :, :EDITED_FROM], host.tokens[:, :EDITED_FROM])
        with later.alone():
            answers = [
                later.logits(
                    residual[1, :, EDITED_FROM:], host.tokens[:, EDITED_FROM:], everywhere, past, torch.arange(3)
                )
                for _ in range(2)
            ]
        assert torch.equal(*answers)


class TestRefusals:
    @pytest.mark.parametrize(
        ("hook_name", "message"),
        [
            ("blocks.0.hook_mlp_out", "later layers read more than its value"),
            ("blocks.0.hook_residpost", "Did you mean"),
        ],
    )
    def test_other_hooks(self, host, hook_name, message):
        residual = host.residual(host.hooks[1])
        with pytest.raises(ValueError, match=message):
            slc.causal.resume_from(host.model, residual, hook_name, host.tokens)

    def test_shapes_that_do_not_fit(self, host):
        residual = host.residual(host.hooks[1])
        resume_from = unwrap(slc.causal.resume_from)  # past the check of types
        for tokens in (host.tokens[:, 1:], host.tokens[1:]):
            with pytest.raises(ValueError, match="Shapes do not match"):
                resume_from(host.model, residual, host.hooks[1], tokens)
        with pytest.raises(ValueError, match="Shapes do not match"):
            resume_from(host.model, residual, host.hooks[1], host.tokens, positions=torch.ones(3, 1).bool())
        with pytest.raises(ValueError, match="residual is empty"):
            resume_from(host.model, residual[:0], host.hooks[1], host.tokens)

    def test_other_kinds_of_model(self):
        with pytest.raises(ValueError, match="The model is a Linear, whose layers after a hook cannot run alone"):
            later_layers_of(torch.nn.Linear(1, 1), 0)
        shape = dict(n_layers=1, d_model=8, n_heads=1, d_head=8, n_ctx=8, d_vocab=5, act_fn="relu", attn_only=True)
        shortformer = HookedTransformer(HookedTransformerConfig(**shape, positional_embedding_type="shortformer"))
        with pytest.raises(ValueError, match="The model is a shortformer, which adds positions"):
            later_layers_of(shortformer, 0)


def block_parts(model):
    """What really runs of every block."""
    return [getattr(block, "original_component", block) for block in model.blocks]
