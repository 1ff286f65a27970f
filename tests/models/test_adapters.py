"""Laws of adapters on one copy of the weights: what the merged second copy computes, and a base that never changes."""

import builtins
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PromptTuningConfig, get_peft_model
from safetensors.torch import load_file
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.activations.cache import writer
from sae_lens_crosscoder.activations.harvest import harvest
from sae_lens_crosscoder.models.loading import load_model, load_tokenizer
from sae_lens_crosscoder.models.tiny import tiny_tokenizer
from sae_lens_crosscoder.storage.checksums import fingerprint
from tests.causal.conftest import gpt2
from tests.models.adapters import FIRST_ADAPTED, save_adapter, save_base, save_merged
from tests.models.small_models import some_tokens

PROXY = "AutoModelForCausalLM"
HOSTS = [("llama", "TransformerBridge"), ("gemma2", "TransformerBridge"), ("llama", PROXY)]
TOLERANCE = {"rtol": 1e-4, "atol": 2e-5}


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


@dataclass(frozen=True)
class Case:
    """A pair on one copy of the weights and the same pair of two copies, the chat model's merged."""

    shared: slc.HookedModelPair
    merged: slc.HookedModelPair
    base: str
    adapter: str
    tokens: torch.Tensor

    @property
    def is_bridge(self):
        return isinstance(self.merged.base, TransformerBridge)

    def hook(self, layer):
        return f"blocks.{layer}.hook_resid_post" if self.is_bridge else f"model.layers.{layer}"

    def blocks(self):
        model = self.shared.base
        return list(model.blocks if self.is_bridge else model.model.model.layers)


@pytest.fixture(scope="module", params=HOSTS, ids="-".join)
def case(request, tmp_path_factory):
    architecture, host = request.param
    folder = tmp_path_factory.mktemp(architecture)
    base = save_base(folder / "base", architecture)
    adapter = save_adapter(folder / "adapter", base)
    merged = save_merged(folder / "merged", base, adapter)
    names = ((base, f"{base}+adapter={adapter}"), (base, merged))
    pairs = [slc.HookedModelPair.from_pretrained(*pair, model_class_name=host) for pair in names]
    return Case(*pairs, base, adapter, some_tokens(n_prompts=3, d_vocab=150))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A base model, two adapters of it, and each merged."""
    folder = tmp_path_factory.mktemp("folders")
    base = save_base(folder / "base")
    adapters = [save_adapter(folder / f"adapter{i}", base, seed=i) for i in (1, 2)]
    merged = [save_merged(folder / f"merged{i}", base, adapter) for i, adapter in enumerate(adapters, 1)]
    return base, adapters, merged


def reversed_from(position):
    def edit(stacked, hook):
        return torch.cat([stacked[:, :position], stacked[:, position:].flip(-1)], dim=1)

    return edit


def counted_calls(blocks):
    """The number of passes through each block, by forward functions that count."""
    counts = [0] * len(blocks)

    def counting(i, forward):
        def count(*args: Any, **kwargs: Any) -> Any:
            counts[i] += 1
            return forward(*args, **kwargs)

        return count

    for i, block in enumerate(blocks):
        vars(block)["forward"] = counting(i, block.forward)
    return counts


def stop_counting(blocks):
    for block in blocks:
        vars(block).pop("forward")


class TestEqualsTheMergedPair:
    def test_at_every_hook_and_in_the_logits(self, case):
        assert list(case.shared.hook_dict) == list(case.merged.hook_dict)
        logits, cache = case.shared.run_with_cache(case.tokens)
        expected_logits, expected = case.merged.run_with_cache(case.tokens)
        assert list(cache) == list(expected)
        for name, value in expected.items():
            torch.testing.assert_close(cache[name], value, **TOLERANCE)
        torch.testing.assert_close(logits, expected_logits, **TOLERANCE)
        torch.testing.assert_close(case.shared(case.tokens), expected_logits, **TOLERANCE)
        assert (logits[:, :, 0] - logits[:, :, 1]).abs().max() > 0.1

    @pytest.mark.parametrize("layer", range(4))
    def test_harvested_below_at_and_above_the_first_adapted_layer(self, case, layer):
        found, expected = (
            torch.cat(list(harvest(pair, case.tokens, case.hook(layer), batch_size=2)))
            for pair in (case.shared, case.merged)
        )
        torch.testing.assert_close(found, expected, **TOLERANCE)
        base, chat = found.chunk(2, dim=-1)
        assert torch.equal(base, chat) == (layer < FIRST_ADAPTED)

    @pytest.mark.parametrize("layer", [0, 2, 3])
    def test_under_a_hook_on_the_pair(self, case, layer):
        edits = [(case.hook(layer), reversed_from(5))]
        found, expected = (pair.run_with_hooks(case.tokens, fwd_hooks=edits) for pair in (case.shared, case.merged))
        torch.testing.assert_close(found, expected, **TOLERANCE)
        assert (found - case.shared(case.tokens)).abs().max() > 1e-2
        with case.shared.hooks(fwd_hooks=edits), case.merged.hooks(fwd_hooks=edits):
            found, expected = (pair.activations(case.tokens, case.hook(3)) for pair in (case.shared, case.merged))
        torch.testing.assert_close(found, expected, **TOLERANCE)

    @pytest.mark.parametrize("side", ["base", "chat"])
    def test_under_a_hook_on_one_of_its_models(self, case, side):
        results = []
        for pair in (case.shared, case.merged):
            with getattr(pair, side).hooks(fwd_hooks=[(case.hook(0), reversed_from(5))]):
                read = [pair.activations(case.tokens, case.hook(layer)) for layer in (0, 3)]
                results.append((pair(case.tokens), *read))
        for found, expected in zip(*results, strict=True):
            torch.testing.assert_close(found, expected, **TOLERANCE)
        changed = (results[0][0] - case.shared(case.tokens)).abs().amax(dim=(0, 1, 3))
        assert (changed > 1e-2).tolist() == [side == "base", side == "chat"]


class TestOneCopy:
    def test_of_the_weights(self, case):
        members = case.shared.members
        stored = {p.data_ptr(): p.numel() for member in members for p in member.parameters()}
        n_base = sum(p.numel() for p in case.merged.base.parameters())
        n_adapter = sum(
            weight.numel() for weight in load_file(Path(case.adapter) / "adapter_model.safetensors").values()
        )
        assert sum(stored.values()) == n_base + n_adapter
        assert [sum(p.numel() for p in member.parameters()) for member in members] == [n_base, n_base + n_adapter]

    def test_lower_layers_run_once_when_harvesting(self, case):
        blocks = case.blocks()
        case.shared.activations(case.tokens, case.hook(3))
        counts = counted_calls(blocks)
        try:
            case.shared.activations(case.tokens, case.hook(3))
            assert counts == [1, 1, 2, 2]
            case.shared.activations(case.tokens, case.hook(1))
            assert counts[:2] == [2, 2]
            assert counts[3] == 2
        finally:
            stop_counting(blocks)

    def test_lower_layers_run_once_when_caching(self, case, tmp_path, monkeypatch):
        """And the cache is the merged pair's, whose models run one after the other."""
        blocks, original, runs = case.blocks(), writer._rows, []

        def counted(*args):
            counts = counted_calls(blocks)
            try:
                return original(*args)
            finally:
                runs.append(list(counts))
                stop_counting(blocks)

        monkeypatch.setattr(writer, "_rows", counted)
        options = {"dtype": "float32", "batch_size": 2, "prompts_per_shard": 2}
        shared = writer.cache_activations(tmp_path / "shared", case.shared, case.tokens, case.hook(3), **options)
        assert runs == [[1, 1, 2, 2]] * len(shared.manifest.shards)
        merged = writer.cache_activations(tmp_path / "merged", case.merged, case.tokens, case.hook(3), **options)
        torch.testing.assert_close(torch.cat(list(shared)), torch.cat(list(merged)), **TOLERANCE)

    def test_the_base_is_bitwise_the_plain_model_after_use_and_after_an_exception(self, case):
        def fail(stacked, hook):
            raise RuntimeError("stop")

        plain = case.merged.base(case.tokens)
        for member in (*case.shared.members, case.shared):
            with pytest.raises(RuntimeError, match="stop"):
                member.run_with_hooks(case.tokens, fwd_hooks=[(case.hook(3), fail)])
        case.shared.activations(case.tokens, case.hook(3))
        hugging_face = case.shared.base.original_model if case.is_bridge else case.shared.base.model
        assert torch.equal(hugging_face(case.tokens).logits, plain)
        assert torch.equal(case.shared.base(case.tokens), plain)
        assert not torch.equal(case.shared.chat(case.tokens), plain)
        assert fingerprint(case.shared.base.parameters()) == fingerprint(case.merged.base.parameters())
        assert fingerprint(case.shared.chat.parameters()) != fingerprint(case.merged.base.parameters())
        assert all(p.requires_grad for p in case.shared.base.parameters())

    def test_a_failing_pass_leaves_nothing_recorded(self, case):
        def fail(activation, hook):
            raise RuntimeError("stop")

        expected = case.shared.activations(case.tokens, case.hook(3))
        with (
            case.shared.chat.hooks(fwd_hooks=[(case.hook(3), fail)]),
            pytest.raises(RuntimeError, match="stop"),
        ):
            case.shared.activations(case.tokens, case.hook(3))
        assert torch.equal(case.shared.activations(case.tokens, case.hook(3)), expected)
        assert all("forward" not in vars(block) for block in case.blocks())


class TestNames:
    def test_two_adapters_of_one_base(self, folders):
        base, adapters, merged = folders
        names = [f"{base}+adapter={adapter}" for adapter in adapters]
        pair = slc.HookedModelPair.from_pretrained(*names, model_class_name="TransformerBridge")
        expected = slc.HookedModelPair.from_pretrained(*merged, model_class_name="TransformerBridge")
        tokens = some_tokens(d_vocab=150)
        torch.testing.assert_close(pair(tokens), expected(tokens), **TOLERANCE)
        assert len({id(member.shared) for member in pair.members}) == 1
        assert pair.model_names == tuple(names)
        assert all(isinstance(member, TransformerBridge) for member in pair.members)

    def test_the_default_class_loads_a_bridge(self, folders):
        base, (adapter, _), (merged, _) = folders
        pair = slc.HookedModelPair.from_pretrained(base, f"{base}+adapter={adapter}")
        assert all(isinstance(member, TransformerBridge) for member in pair.members)
        tokens = some_tokens(d_vocab=150)
        single = load_model(f"{base}+adapter={adapter}", "cpu", "float32", "HookedTransformer", {})
        assert torch.equal(single(tokens), pair.chat(tokens))
        other = slc.HookedModelPair.from_pretrained(
            merged, f"{base}+adapter={adapter}", model_class_name="TransformerBridge"
        )
        torch.testing.assert_close(other.base(tokens), other.chat(tokens), **TOLERANCE)
        assert (
            load_tokenizer(f"{base}+adapter={adapter}", "HookedTransformer").get_vocab() == pair.tokenizer.get_vocab()
        )

    def test_token_replacements_change_the_base_models_passes_only(self, folders):
        base, (adapter, _), (merged, _) = folders
        options: dict[str, Any] = {"model_class_name": "TransformerBridge", "token_replacements": {"paris": "rome"}}
        pair, expected = (
            slc.HookedModelPair.from_pretrained(base, chat, **options) for chat in (f"{base}+adapter={adapter}", merged)
        )
        ids = pair.tokenizer.convert_tokens_to_ids(["<bos>", "paris", "is", "in"])
        for hook in ("blocks.0.hook_resid_post", "blocks.3.hook_resid_post"):
            found = pair.activations(torch.tensor([ids]), hook)
            torch.testing.assert_close(found, expected.activations(torch.tensor([ids]), hook), **TOLERANCE)
            assert not torch.equal(*found.chunk(2, dim=-1))

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("+adapter=x", "names no base or no adapter"),
            ("x+adapter=", "names no base or no adapter"),
            ("x+adapter=y+jitter=0.1", "both an adapter and jitter"),
            ("tiny-base+adapter=y", "takes no adapters"),
        ],
    )
    def test_a_wrong_name_is_refused(self, name, message):
        with pytest.raises(ValueError, match=message):
            load_model(name, "cpu", "float32", "TransformerBridge", {})


class TestRefusals:
    def load(self, base, adapter, model_class_name="TransformerBridge"):
        return load_model(f"{base}+adapter={adapter}", "cpu", "float32", model_class_name, {})

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"modules_to_save": ["lm_head"]}, "sets modules_to_save="),
            ({"use_dora": True}, "sets use_dora=True"),
            ({"bias": "all"}, "trains biases"),
            ({"trainable_token_indices": [1, 2]}, "sets trainable_token_indices="),
            ({"target_modules": ["lm_head"], "layers_to_transform": None}, "'lm_head', an embedding or unembedding"),
            ({"target_modules": ["embed_tokens"], "layers_to_transform": None}, "embed_tokens', an embedding"),
        ],
    )
    def test_an_adapter_that_cannot_be_switched_off_is_refused_by_name(self, folders, tmp_path, options, message):
        adapter = save_adapter(tmp_path, folders[0], **options)
        with pytest.raises(ValueError, match=message):
            self.load(folders[0], adapter)

    def test_a_start_that_moves_the_base_is_refused(self, folders, tmp_path):
        path = Path(save_adapter(tmp_path, folders[0])) / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"init_lora_weights": "pissa"}))
        with pytest.raises(ValueError, match="init_lora_weights='pissa', which changes the base"):
            self.load(folders[0], tmp_path)

    def test_prompt_tuning_is_refused(self, folders, tmp_path):
        model = AutoModelForCausalLM.from_pretrained(folders[0])
        get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)).save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="peft_type='PROMPT_TUNING', expected 'LORA'"):
            self.load(folders[0], tmp_path)

    @pytest.mark.parametrize(
        ("shape", "message"),
        [
            ({"intermediate_size": 48}, "maps 64 to 32 features at .*maps 48 to 32"),
            ({"num_hidden_layers": 3}, "layers.3.*does not have"),
        ],
    )
    def test_an_adapter_of_another_base_is_refused(self, folders, tmp_path, shape, message):
        other = save_base(tmp_path / "other", **shape)
        with pytest.raises(ValueError, match=message):
            self.load(other, folders[1][0])

    def test_a_host_that_computes_without_the_adapters_layers_is_refused(self, tmp_path):
        base, adapter = tmp_path / "base", tmp_path / "adapter"
        gpt2(noise=0.05).save_pretrained(base)
        tiny_tokenizer().save_pretrained(base)
        options = {"target_modules": ["c_attn"], "layers_to_transform": [2], "fan_in_fan_out": True}
        save_adapter(adapter, str(base), **options)
        with pytest.raises(ValueError, match="TransformerLens does not run adapter"):
            self.load(base, adapter)
        tokens = some_tokens(d_vocab=150)
        expected = load_model(save_merged(tmp_path / "merged", str(base), str(adapter)), "cpu", "float32", PROXY, {})
        torch.testing.assert_close(self.load(base, adapter, PROXY)(tokens), expected(tokens), **TOLERANCE)

    def test_without_peft_the_message_names_the_extra(self, folders, monkeypatch):
        real = builtins.__import__

        def without_peft(name, *args, **kwargs):
            if name.split(".")[0] == "peft":
                raise ImportError(name)
            return real(name, *args, **kwargs)

        monkeypatch.setattr(builtins, "__import__", without_peft)
        with pytest.raises(ImportError, match=r"pip install 'sae-lens-crosscoder\[adapters\]'"):
            self.load(folders[0], folders[1][0])
