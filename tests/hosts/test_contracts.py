"""What we rely on in SAELens and TransformerLens, one fact a test, beside what we do about it.

A test that fails after an upgrade of a host says which of our workarounds may go, or which assumption broke.
"""

import dataclasses
import importlib
import inspect
import json
import logging
import re
import signal
from importlib.metadata import requires

import pytest
import sae_lens.registry as registry
import torch
from datasets import load_dataset
from sae_lens import (
    SAE,
    ActivationsStore,
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    JumpReLUSAE,
    JumpReLUSAEConfig,
    LanguageModelSAERunnerConfig,
    LanguageModelSAETrainingRunner,
    SAETrainer,
    StandardTrainingSAE,
    StandardTrainingSAEConfig,
    TrainingSAEConfig,
)
from sae_lens.config import SAETrainerConfig
from sae_lens.load_model import load_model
from sae_lens.saes import topk_sae
from sae_lens.saes.sae import SAEConfig
from sae_lens.training._interruption import InterruptedException
from sae_lens.training.activation_scaler import ActivationScaler
from sae_lens.training.activations_store import _get_input_token_device
from transformer_lens import HookedTransformer
from transformer_lens.HookedRootModule import HookedRootModule
from transformer_lens.model_bridge import TransformerBridge
from transformers.cache_utils import DynamicLayer

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.activations.scales import MeanNorms
from sae_lens_crosscoder.crosscoders import l1, registration
from sae_lens_crosscoder.data.sources import load_rows
from tests.hosts.conftest import BATCH, CONTEXT, D_MODEL, D_SAE, HOOK, host_config, training_config
from tests.models.small_models import gemma2, random_hooked_transformer, save_pair, some_tokens


def batches(d_in, n=60, seed=0, loudness=None):
    generator = torch.Generator().manual_seed(seed)
    scale = torch.ones(d_in) if loudness is None else loudness
    return iter([scale * torch.randn(32, d_in, generator=generator) for _ in range(n)])


def trainer_config(n_steps=3, **fields):
    return slc.CrosscoderTrainerConfig(
        **dict(
            total_training_samples=32 * n_steps,
            train_batch_size_samples=32,
            lr_warm_up_steps=0,
            lr=1e-3,
            n_batches_for_norm_estimate=10,
        )
        | fields
    )


def host_trainer_config(n_steps=3):
    fields = {field.name for field in dataclasses.fields(SAETrainerConfig)}
    return SAETrainerConfig(**{name: value for name, value in vars(trainer_config(n_steps)).items() if name in fields})


def saved_crosscoder(folder, architecture, **fields):
    """Trained for a few steps on noise, and saved for inference."""
    crosscoder = registry.get_sae_training_class(architecture)[0](
        training_config(architecture, d_model=None, d_models=(3, 5), d_sae=16, **fields)
    )
    slc.CrosscoderTrainer(trainer_config(), crosscoder, batches(8)).fit()
    crosscoder.save_inference_model(folder)
    return crosscoder


class TestTheHookPointsOfTheModels:
    """Trap 1."""

    def test_transformer_lens_setup_renames_the_hook_points_of_wrapped_models(self):
        class NaivePair(HookedRootModule):
            def __init__(self, model):
                super().__init__()
                self.members = torch.nn.ModuleList([model])
                self.setup()

        model = random_hooked_transformer(8, seed=0)
        name = "blocks.0.hook_resid_post"
        assert model.hook_dict[name].name == name
        slc.HookedModelPair(model, model)
        assert model.hook_dict[name].name == name
        NaivePair(model)
        assert model.hook_dict[name].name == "members.0." + name

    def test_saelens_looks_for_the_device_in_w_e_then_model_then_cfg(self, pair):
        assert _get_input_token_device(pair) == pair.base.W_E.device
        source = inspect.getsource(_get_input_token_device)
        assert source.index('"W_E"') < source.index('"model"') < source.index('"cfg"')
        assert not hasattr(pair, "model")
        assert not hasattr(pair, "cfg")

    def test_a_bridge_builds_its_hook_dict_anew_at_every_access(self, tmp_path):
        bridge = TransformerBridge.boot_transformers(save_pair(tmp_path, gemma2)[0], device="cpu")
        first, second = bridge.hook_dict, bridge.hook_dict
        assert first is not second
        assert first == second


class TestScaling:
    """Trap 2."""

    def test_saelens_scales_the_whole_stack_by_one_factor_and_leaves_the_louder_model_louder(self):
        loudness = torch.tensor([1.0] * 4 + [10.0] * 4)
        scaler = ActivationScaler()
        scaler.estimate_scaling_factor(8, batches(8, loudness=loudness), n_batches_for_norm_estimate=50)
        assert isinstance(scaler.scaling_factor, float)
        scaled = scaler.scale(torch.cat(list(batches(8, n=50, loudness=loudness))))
        base, chat = scaled.split(4, dim=-1)
        assert chat.norm(dim=-1).mean() / base.norm(dim=-1).mean() == pytest.approx(10, rel=0.05)

    def test_ours_is_the_same_estimate_once_per_model(self):
        loudness = torch.tensor([1.0] * 4 + [10.0] * 4)
        norms = MeanNorms(slc.stacking.StackedLayout((4, 4)))
        data = torch.cat(list(batches(8, n=50, loudness=loudness)))
        norms.add(data)
        for scale, part in zip(norms.scales().tolist(), data.split(4, dim=-1), strict=True):
            alone = ActivationScaler()
            alone.estimate_scaling_factor(4, iter([part]), n_batches_for_norm_estimate=1)
            assert scale == pytest.approx(alone.scaling_factor, rel=1e-5)


class TestHeuristicsKeyedToTheStack:
    """Trap 3."""

    def kept_dead_latents(self, sae, monkeypatch):
        asked = []
        original = topk_sae.calculate_topk_aux_acts

        def watch(k_aux, **kwargs):
            asked.append(k_aux)
            return original(k_aux=k_aux, **kwargs)

        monkeypatch.setattr(topk_sae, "calculate_topk_aux_acts", watch)
        x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
        hidden = 1 + torch.rand(5, 32, generator=torch.Generator().manual_seed(1))
        loss = sae.calculate_topk_aux_loss(x, torch.zeros_like(x), hidden, torch.ones(32, dtype=torch.bool))
        loss.backward()
        return asked

    def test_saelens_gives_the_auxiliary_loss_half_the_stack(self, monkeypatch):
        sae = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(d_in=8, d_sae=32, k=4))
        assert self.kept_dead_latents(sae, monkeypatch) == [4]

    def test_ours_gives_it_half_of_one_model(self, monkeypatch):
        crosscoder = slc.BatchTopKTrainingCrosscoder(training_config("batchtopk_crosscoder", d_model=4, d_sae=32))
        hidden = torch.arange(1.0, 33.0).expand(5, 32)  # the same latents are best on every token
        x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
        dead = torch.ones(32, dtype=torch.bool)
        crosscoder.calculate_topk_aux_loss(x, torch.zeros_like(x), hidden, dead).backward()
        assert int((crosscoder.W_dec.grad.norm(dim=-1) > 0).sum()) == 2


class TestTrainingStep:
    """Trap 4."""

    @pytest.fixture
    def clipped_at(self, monkeypatch):
        limits = []
        original = torch.nn.utils.clip_grad_norm_

        def watch(parameters, max_norm, *args, **kwargs):
            limits.append(max_norm)
            return original(parameters, max_norm, *args, **kwargs)

        monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", watch)
        return limits

    def test_saelens_clips_gradients_at_one_and_has_no_field_for_it(self, clipped_at):
        sae = StandardTrainingSAE(StandardTrainingSAEConfig(d_in=8, d_sae=16))
        SAETrainer(host_trainer_config(), sae, batches(8)).fit()
        assert clipped_at == [1.0, 1.0, 1.0]
        for config in (SAETrainerConfig, LanguageModelSAERunnerConfig):
            assert not [field.name for field in dataclasses.fields(config) if "clip" in field.name]

    def test_a_fused_adam_divides_gradients_by_its_grad_scale(self):
        """How ours clips: what each crosscoder's limit does is in tests/training."""
        plain, fused = (torch.nn.Parameter(torch.ones(5)) for _ in range(2))
        ours, reference = torch.optim.Adam([fused], fused=True), torch.optim.Adam([plain])
        for scale in (4.0, 1.0, 2.5):
            plain.grad, fused.grad = torch.arange(5.0) / scale, torch.arange(5.0)
            ours.grad_scale = torch.tensor(scale)
            ours.step()
            reference.step()
            torch.testing.assert_close(fused, plain)

    def test_saelens_loss_is_the_squared_error_summed_over_the_stack(self):
        sae = StandardTrainingSAE(StandardTrainingSAEConfig(d_in=8, d_sae=16))
        error = torch.tensor([[3.0, 4.0]])
        assert sae.mse_loss_fn(error, torch.zeros(1, 2)).sum().item() == 25.0
        assert training_config("crosscoder").reconstruction_loss == "l2_norm"


class TestMetricsWithoutWandb:
    """Trap 5."""

    def test_saelens_evaluates_only_when_wandb_is_on(self):
        calls = []
        sae = StandardTrainingSAE(StandardTrainingSAEConfig(d_in=8, d_sae=16))
        cfg = host_trainer_config(n_steps=20)
        cfg.logger.log_to_wandb = False
        cfg.logger.wandb_log_frequency = cfg.logger.eval_every_n_wandb_logs = 1
        SAETrainer(cfg, sae, batches(8), evaluator=lambda *args: calls.append(args) or {}).fit()
        assert calls == []

    def test_ours_writes_metrics_to_a_file_and_a_table(self, tmp_path):
        crosscoder = slc.L1TrainingCrosscoder(training_config("crosscoder", d_model=4, d_sae=16))
        path = tmp_path / "metrics.jsonl"
        cfg = trainer_config(n_steps=6, log_frequency=2, metrics_path=str(path))
        cfg.logger.log_to_wandb = False
        trainer = slc.CrosscoderTrainer(cfg, crosscoder, batches(8))
        trainer.fit()
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert [row["step"] for row in rows] == trainer.history.step.tolist() == [2, 4, 6]
        assert {"fve_base", "fve_chat", "l0", "n_dead"} <= set(rows[0])


class TestInterruption:
    """Trap 6."""

    @pytest.fixture(autouse=True)
    def _restore_signal_handlers(self):
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        yield
        for number, handler in handlers.items():
            signal.signal(number, handler)

    def test_saelens_saves_no_weights_when_interrupted(self, pair, rows, tmp_path):
        cfg = host_config(checkpoint_path=None)
        cfg.checkpoint_path = str(tmp_path)
        runner = LanguageModelSAETrainingRunner(cfg, override_model=pair, override_dataset=rows)

        class Interrupted:
            n_training_samples = 7

            def fit(self):
                raise InterruptedException

        (tmp_path / "7").mkdir()
        with pytest.raises(InterruptedException):
            runner.run_trainer_with_interruption_handling(Interrupted())
        written = {path.name for path in (tmp_path / "7").iterdir()}
        assert "runner_cfg.json" in written
        assert not any("sae_weights" in name or "trainer_state" in name for name in written)

    def test_ours_saves_weights_and_trainer_state_when_interrupted(self, tmp_path):
        def interrupted():
            yield from batches(8, n=2)
            raise InterruptedException

        crosscoder = slc.L1TrainingCrosscoder(training_config("crosscoder", d_model=4, d_sae=16))
        cfg = trainer_config(n_steps=6, checkpoint_path=str(tmp_path))
        with pytest.raises(InterruptedException):
            slc.CrosscoderTrainer(cfg, crosscoder, interrupted()).fit()
        written = {path.name for path in tmp_path.rglob("*") if path.is_file()}
        assert {"sae_weights.safetensors", "cfg.json", "trainer_state.pt"} <= written


class TestConfigKeys:
    """Trap 7."""

    def test_saelens_drops_unknown_keys_silently(self):
        cfg = TrainingSAEConfig.from_dict({"architecture": "batchtopk", "d_in": 8, "d_sae": 16, "kk": 3})
        assert not hasattr(cfg, "kk")

    def test_ours_refuses_them_and_names_the_nearest(self):
        cls = slc.L1CrosscoderTrainingConfig
        with pytest.raises(ValueError, match=r"no field 'l1_coeficient'. Did you mean 'l1_coefficient'\?"):
            cls.from_dict({"architecture": "crosscoder", "d_model": 4, "d_sae": 16, "l1_coeficient": 1.0})

    def test_a_saved_crosscoder_with_an_unknown_key_is_read_by_saelens_and_refused_by_ours(self, tmp_path):
        saved_crosscoder(tmp_path, "crosscoder")
        path = tmp_path / "cfg.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"scroe": "l2"}))
        assert not hasattr(SAE.load_from_disk(tmp_path).cfg, "scroe")
        with pytest.raises(ValueError, match=r"no field 'scroe'. Did you mean 'score'\?"):
            slc.load(tmp_path)

    def test_saelens_loader_hands_over_lists_and_ours_makes_them_tuples(self, tmp_path):
        saved_crosscoder(tmp_path, "crosscoder", activation_scaling="per_model")
        assert isinstance(json.loads((tmp_path / "cfg.json").read_text())["d_models"], list)
        cfg = SAE.load_from_disk(tmp_path).cfg
        assert cfg.d_models == (3, 5)
        assert isinstance(cfg.activation_scales, tuple)

    def test_without_our_import_saelens_knows_only_a_key_error(self, tmp_path, monkeypatch):
        saved_crosscoder(tmp_path, "crosscoder")
        monkeypatch.delitem(registry.SAE_CLASS_REGISTRY, "crosscoder")
        with pytest.raises(KeyError, match="crosscoder"):
            SAE.load_from_disk(tmp_path)


class TestRegistration:
    """Trap 8."""

    def test_saelens_raises_when_an_architecture_is_registered_twice(self):
        with pytest.raises(ValueError, match="already registered"):
            registry.register_sae_class("crosscoder", *registry.get_sae_class("crosscoder"))
        with pytest.raises(ValueError, match="already registered"):
            registry.register_sae_training_class("crosscoder", *registry.get_sae_training_class("crosscoder"))

    def test_ours_may_be_repeated_and_reloaded(self):
        before = dict(registry.SAE_CLASS_REGISTRY), dict(registry.SAE_TRAINING_CLASS_REGISTRY)
        slc.crosscoders.register_architectures()
        slc.crosscoders.register_architectures()
        importlib.reload(registration)
        importlib.reload(slc)
        assert before == (registry.SAE_CLASS_REGISTRY, registry.SAE_TRAINING_CLASS_REGISTRY)

    def test_a_reloaded_class_takes_the_place_of_the_old_one(self):
        old = dict(vars(l1))
        try:
            importlib.reload(l1)
            importlib.reload(registration).register_architectures()
            registered, _ = registry.get_sae_training_class("crosscoder")
            assert registered is l1.L1TrainingCrosscoder is not old["L1TrainingCrosscoder"]
        finally:
            vars(l1).update(old)
            importlib.reload(registration).register_architectures()
        assert registry.get_sae_training_class("crosscoder")[0] is slc.L1TrainingCrosscoder

    def test_somebody_elses_architecture_of_the_same_name_is_not_replaced(self, monkeypatch):
        theirs = registry.get_sae_class("standard")
        monkeypatch.setitem(registry.SAE_CLASS_REGISTRY, "crosscoder", theirs)
        with pytest.raises(ValueError, match="already registered"):
            slc.crosscoders.register_architectures()
        assert registry.get_sae_class("crosscoder") == theirs


class TestReadingActivations:
    """Traps 9, 10 and 17."""

    def test_saelens_flattens_heads_after_stacking_and_so_interleaves_the_models(self, pair, rows):
        class Heads(HookedRootModule):
            """Base activations are 0, chat activations 1, on two heads of two dimensions each."""

            tokenizer, W_E = pair.tokenizer, pair.W_E

            def run_with_cache(self, tokens, **kwargs):
                base, chat = torch.zeros(*tokens.shape, 2, 2), torch.ones(*tokens.shape, 2, 2)
                return None, {HOOK: torch.cat([base, chat], dim=-1)}

        cfg = host_config(sae=training_config("batchtopk_crosscoder", d_model=4))
        store = ActivationsStore.from_config(Heads(), cfg, override_dataset=rows)
        flat = store.get_activations(torch.zeros(1, CONTEXT, dtype=torch.long))
        assert flat[0, 0].tolist() == [0, 0, 1, 1, 0, 0, 1, 1]

    def test_saelens_loads_hooked_transformers_with_raw_weights(self, monkeypatch):
        asked = []
        monkeypatch.setattr(HookedTransformer, "from_pretrained_no_processing", lambda **kwargs: asked.append(kwargs))
        load_model("HookedTransformer", "some/model", device="cpu", model_from_pretrained_kwargs={"dtype": "x"})
        assert asked == [{"model_name": "some/model", "device": "cpu", "dtype": "x"}]

    def test_saelens_store_stops_the_models_at_the_hooks_layer(self, pair, rows):
        reached = []
        handles = [
            module.register_forward_hook(lambda *args, i=i: reached.append(i))
            for model in pair.members
            for i, module in enumerate((model.blocks[1], model.blocks[2], model.unembed))
        ]
        next(ActivationsStore.from_config(pair, host_config(), override_dataset=rows))
        for handle in handles:
            handle.remove()
        assert set(reached) == {0}

    def test_datasets_logs_an_error_for_trust_remote_code_and_ours_never_passes_it(self, tmp_path, monkeypatch, caplog):
        (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
        files = {"data_files": str(tmp_path / "rows.jsonl"), "split": "train", "streaming": True}
        monkeypatch.setattr(logging.getLogger("datasets"), "propagate", True)
        load_dataset("json", trust_remote_code=True, **files)
        assert "`trust_remote_code` is not supported anymore" in caplog.text
        passed = []
        module = importlib.import_module("sae_lens_crosscoder.data.sources")
        monkeypatch.setattr(module, "load_dataset", lambda *a, **k: passed.append(k) or load_dataset("json", **files))
        load_rows("some/dataset", streaming=True, n_tokens=1, n_held_out_rows=1, seed=0)
        assert "trust_remote_code" not in passed[0]
        with pytest.raises(ValueError, match="would run a dataset's own code"):
            slc.CrosscoderRunnerConfig(sae=training_config("crosscoder"), dataset_trust_remote_code=True)

    def test_transformer_bridge_ignores_unknown_hooks_and_hooked_transformer_raises_a_key_error(self, tmp_path):
        tokens = some_tokens()
        nothing = [("blocks.0.no_such_hook", lambda value, hook: value * 0)]
        folders = save_pair(tmp_path, gemma2)
        bridge = TransformerBridge.boot_transformers(folders[0], device="cpu")
        with torch.no_grad():
            assert torch.equal(bridge.run_with_hooks(tokens, fwd_hooks=nothing), bridge(tokens))
            hooked = random_hooked_transformer(8, seed=0)
            with pytest.raises(KeyError):
                hooked.run_with_hooks(tokens, fwd_hooks=nothing)
            for pair in (slc.HookedModelPair(bridge, bridge), slc.HookedModelPair(hooked, hooked)):
                with pytest.raises(ValueError, match="no common hook"):
                    pair.run_with_hooks(tokens, fwd_hooks=nothing)


class TestThresholds:
    """Trap 9, second half."""

    def test_saelens_threshold_starts_from_zero_without_correction(self):
        sae = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(d_in=8, d_sae=16, k=2, topk_threshold_lr=0.01))
        sae.update_topk_threshold(torch.full((4, 16), 5.0))
        assert sae.topk_threshold.item() == pytest.approx(0.05)

    def test_ours_is_the_smallest_score_from_the_first_step(self):
        crosscoder = slc.BatchTopKTrainingCrosscoder(training_config("batchtopk_crosscoder", d_model=4, d_sae=16))
        crosscoder._follow_smallest_score(torch.tensor([7.0, 5.0, 6.0]), step=0)
        assert crosscoder.topk_threshold.item() == 5.0

    def test_saelens_jumprelu_keeps_only_what_is_strictly_above_the_threshold(self):
        sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=3, d_sae=3, apply_b_dec_to_input=False))
        with torch.no_grad():
            sae.W_enc.copy_(torch.eye(3))
            sae.threshold.copy_(torch.full((3,), 2.0))
            assert sae.encode(torch.tensor([1.0, 2.0, 3.0])).tolist() == [0.0, 0.0, 3.0]


class TestCanonicalForm:
    """Trap 13."""

    @pytest.mark.parametrize("architecture", ["crosscoder", "batchtopk_crosscoder"])
    @pytest.mark.parametrize("scaling", ["none", "per_model"])
    @pytest.mark.parametrize("score", ["sum", "l2", "max", "none"])
    def test_saelens_own_fold_is_harmless_on_a_saved_crosscoder(self, tmp_path, architecture, scaling, score):
        saved_crosscoder(tmp_path, architecture, activation_scaling=scaling, score=score)
        plain, folded = (SAE.load_from_disk(tmp_path, fold_W_dec_norm=fold) for fold in (False, True))
        x = next(batches(8, seed=5))
        with torch.no_grad():
            assert torch.equal(folded.encode(x), plain.encode(x))
            assert torch.equal(folded(x), plain(x))
            assert (plain.encode(x) > 0).any()

    def test_on_a_plain_sae_that_fold_does_change_activations(self):
        sae = StandardTrainingSAE(StandardTrainingSAEConfig(d_in=8, d_sae=16, decoder_init_norm=0.5))
        x = next(batches(8))
        before = sae.encode(x)
        sae.fold_W_dec_norm()
        torch.testing.assert_close(sae.encode(x), 0.5 * before)


class TestRunnerConfig:
    """Traps 14, 15 and 16."""

    def test_saelens_runner_does_not_use_its_seed(self, pair, rows):
        torch.manual_seed(0)
        cfgs = [host_config(seed=7), host_config(seed=7)]
        first, second = (
            LanguageModelSAETrainingRunner(cfg, override_model=pair, override_dataset=rows) for cfg in cfgs
        )
        assert not torch.equal(first.sae.W_dec, second.sae.W_dec)

    def test_ours_does(self, pair, rows):
        def decoder(seed, global_seed):
            torch.manual_seed(global_seed)
            cfg = slc.CrosscoderRunnerConfig(
                sae=training_config("crosscoder"),
                model_name="tiny-base",
                chat_model_name="tiny-chat",
                hook_name=HOOK,
                context_size=CONTEXT,
                training_tokens=2 * BATCH,
                train_batch_size_tokens=BATCH,
                lr_warm_up_steps=0,
                n_held_out_rows=4,
                checkpoint_path=None,
                output_path=None,
                seed=seed,
            )
            runner = slc.CrosscoderTrainingRunner(cfg, override_model=pair, override_dataset=rows)
            return runner.training_crosscoder.W_dec

        assert torch.equal(decoder(7, 0), decoder(7, 1))
        assert not torch.equal(decoder(7, 0), decoder(8, 0))

    def test_saelens_appends_a_random_id_to_the_checkpoint_path(self):
        paths = [host_config(checkpoint_path="here").checkpoint_path for _ in range(2)]
        assert paths[0] != paths[1]
        assert all(re.fullmatch(r"here/[0-9a-f]{8}", path) for path in paths)

    def test_saelens_default_buffer_is_smaller_than_its_default_batch(self, pair, rows):
        defaults = {field.name: field.default for field in dataclasses.fields(LanguageModelSAERunnerConfig)}
        assert defaults["n_batches_in_buffer"] * defaults["context_size"] < defaults["train_batch_size_tokens"]
        cfg = host_config(n_batches_in_buffer=20, train_batch_size_tokens=20 * CONTEXT + 1)
        with pytest.raises(ValueError, match="Buffer size must be greater"):
            next(ActivationsStore.from_config(pair, cfg, override_dataset=rows))

    def test_our_default_buffer_is_large_enough(self):
        cfg = slc.CrosscoderRunnerConfig(sae=training_config("crosscoder"))
        assert cfg.n_batches_in_buffer * cfg.context_size >= cfg.train_batch_size_tokens
        with pytest.raises(ValueError, match="do not fill one training batch"):
            slc.CrosscoderRunnerConfig(sae=training_config("crosscoder"), n_batches_in_buffer=1)


class TestResuming:
    """What running later layers alone stands on."""

    @pytest.fixture(scope="class")
    def bridge(self, tmp_path_factory):
        folder, _ = save_pair(tmp_path_factory.mktemp("models"), gemma2)
        return TransformerBridge.boot_transformers(folder, device="cpu", dtype=torch.float32)

    @torch.no_grad()
    def test_a_bridge_cannot_start_at_a_layer(self, bridge):
        with pytest.raises(NotImplementedError, match="start_at_layer is not supported"):
            bridge(torch.randn(1, 3, 32), start_at_layer=1)

    def test_what_is_assigned_to_a_bridges_block_lands_in_hugging_faces(self, bridge):
        block = bridge.blocks[0]
        block.forward = len
        assert "forward" not in vars(block)
        assert vars(block.original_component).pop("forward") is len

    @torch.no_grad()
    def test_hugging_face_reads_the_number_of_past_positions_off_the_first_layer(self, bridge):
        _, past = bridge(some_tokens(), return_type="logits_and_cache", use_cache=True)
        assert past.get_seq_length() == past.layers[0].get_seq_length() == 12
        past.layers[0] = DynamicLayer()
        assert past.get_seq_length() == 0

    @torch.no_grad()
    def test_a_cache_of_hugging_face_grows_by_new_tensors(self, bridge):
        _, past = bridge(some_tokens(), return_type="logits_and_cache", use_cache=True)
        keys = [layer.keys for layer in past.layers]
        before = [tensor.clone() for tensor in keys]
        bridge(some_tokens(n_pos=2), past_key_values=past, use_cache=True)
        assert all(torch.equal(tensor, copy) for tensor, copy in zip(keys, before, strict=True))
        assert all(layer.keys is not tensor for layer, tensor in zip(past.layers, keys, strict=True))

    @torch.no_grad()
    def test_starting_behind_the_last_layer_is_the_unembedding_alone(self):
        model = random_hooked_transformer(8, seed=0)
        final = model(some_tokens(), stop_at_layer=2)
        assert torch.equal(model(final, start_at_layer=2), model(some_tokens()))


def test_saelens_pins_transformer_lens_below_4():
    """Trap 11: 4.x removes HookedTransformer."""
    (pin,) = [line for line in requires("sae-lens") or [] if line.startswith("transformer-lens")]
    assert "<4" in pin


def test_d_in_is_all_that_saelens_reads_of_the_widths():
    """The idea that carries the package: to SAELens a crosscoder is an SAE on the stack."""
    assert isinstance(training_config("crosscoder"), SAEConfig)
    assert training_config("crosscoder").d_in == 2 * D_MODEL
    assert training_config("crosscoder").d_sae == D_SAE
