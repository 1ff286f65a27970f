"""A crosscoder of models with different tokenizers: trained from text and chats, cached, diagnosed, explored."""

import pytest
import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.training.data.run_cache import write_run_cache
from sae_lens_crosscoder.workflows.saved_crosscoders import load_pair
from tests.models.two_tokenizers import byte_level, sentence_piece, texts

HOOK, D_SAE, BATCH = "blocks.0.hook_resid_post", 16, 64
WIDTHS = (32, 24)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A base and a chat model that write the same text with other tokens."""
    folder = tmp_path_factory.mktemp("models")
    for name, width, tokenizer in zip(("base", "chat"), WIDTHS, (byte_level(), sentence_piece()), strict=True):
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            max_position_embeddings=128,
            attn_implementation="eager",
        )
        torch.manual_seed(width)
        LlamaForCausalLM(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    Dataset.from_dict({"text": texts(200, seed=1)}).save_to_disk(folder / "texts")
    chats = [[{"role": "user", "content": text}, {"role": "assistant", "content": text[::-1]}] for text in texts(60)]
    Dataset.from_dict({"messages": chats}).save_to_disk(folder / "chats")
    return folder


def config(folders, output, **fields):
    mix = [
        slc.MixSource(str(folders / "texts"), "text", "text"),
        slc.MixSource(str(folders / "chats"), "conversations", "messages"),
    ]
    defaults = dict(
        sae=slc.BatchTopKCrosscoderTrainingConfig(d_models=WIDTHS, d_sae=D_SAE, k=4, topk_threshold_lr=0.1),
        model_name=str(folders / "base"),
        chat_model_name=str(folders / "chat"),
        align_tokens=True,
        hook_name=HOOK,
        mix=slc.DataMix(mix),
        packing="one_document",
        context_size=48,
        training_tokens=6 * BATCH,
        train_batch_size_tokens=BATCH,
        store_batch_size_prompts=4,
        n_held_out_rows=4,
        lr=1e-3,
        lr_warm_up_steps=2,
        log_frequency=4,
        checkpoint_path=None,
        output_path=str(output),
    )
    return slc.CrosscoderRunnerConfig(**(defaults | fields))


@pytest.fixture(scope="module")
def trained(folders, tmp_path_factory):
    output = tmp_path_factory.mktemp("output")
    runner = slc.CrosscoderTrainingRunner(config(folders, output))
    return runner, runner.run(), output


def n_real(tokens):
    return int((tokens != sentence_piece().pad_token_id).sum())


def test_only_paired_tokens_are_trained_on(trained):
    runner, _, output = trained
    tokens = runner.held_out_tokens
    kept = runner.held_out_kept
    padding = tokens == sentence_piece().pad_token_id
    assert torch.equal(kept, runner.pair.aligned(tokens) & ~padding)
    assert 0.1 < kept.float().mean() < 0.9
    rows = next(iter(runner.held_out_store))
    assert rows.isfinite().all()
    saved = slc.load(output)
    assert saved.cfg.metadata.align_tokens
    assert saved.cfg.metadata.pair_check["frac_aligned"] == runner.pair_check.frac_aligned
    assert saved.layout.d_models == WIDTHS
    assert slc.CrosscoderRunnerConfig.from_dict(runner.cfg.to_dict()).to_dict() == runner.cfg.to_dict()


def test_held_out_tokens_are_diagnosed_and_explored(trained, tmp_path):
    runner, crosscoder, output = trained
    data = runner.held_out_data()
    diagnosis = slc.diagnose(crosscoder, data)
    rows = runner.pair.activations(data.tokens, HOOK)[data.token_mask]
    given = slc.diagnose(crosscoder, slc.EvalData(activations=rows))
    for name in ("delta_norm", "frequency"):
        columns = [torch.tensor(read.latents[name].to_numpy()) for read in (diagnosis, given)]
        torch.testing.assert_close(*columns, equal_nan=True)
    assert diagnosis.manifest["frac_aligned"] == pytest.approx(float(data.token_mask.sum()) / n_real(data.tokens))
    exploration = slc.explore(crosscoder, data, diagnosis)
    assert exploration.kl is None
    slc.write_explorer({"crosscoder": exploration}, tmp_path / "explorer.html")
    pair = load_pair({"": slc.load(output)}, str(output))
    assert torch.equal(pair.aligned(data.tokens), runner.pair.aligned(data.tokens))
    for setting, value in (("align_tokens", False), ("token_replacements", {"<turn>": "the"})):
        other = slc.load(output)
        setattr(other.cfg.metadata, setting, value)
        with pytest.raises(ValueError, match=f"were trained with {setting}=.*Pass the folder of one crosscoder"):
            load_pair({"one": slc.load(output), "other": other}, str(output))


def test_a_cache_holds_the_paired_tokens(folders, trained, tmp_path):
    runner, _, _ = trained
    cfg = config(folders, tmp_path / "output", cached_activations_path=str(tmp_path / "cache"))
    _, held_out = write_run_cache(cfg, "float32")
    tokens, mask = held_out.contexts
    assert torch.equal(mask, runner.held_out_kept)
    torch.testing.assert_close(torch.cat(list(held_out)), runner.pair.activations(tokens, HOOK)[mask])
    cached = slc.CrosscoderTrainingRunner(cfg.replace(use_cached_activations=True))
    assert len(slc.diagnose(cached.run(), cached.held_out_data()).latents) == D_SAE


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"token_replacements": {"<turn>": "the"}}, "but token_replacements needs a common one"),
        ({"mix": slc.DataMix([slc.MixSource(kind="answers", prompts=["a b"])])}, "but kind='answers' needs a common"),
    ],
)
def test_settings_that_need_one_tokenizer_are_refused(folders, tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
        config(folders, tmp_path, **fields)


def test_without_the_setting_the_message_names_it(folders, tmp_path):
    with pytest.raises(ValueError, match=r"tokenizers differ.*align_tokens"):
        slc.CrosscoderTrainingRunner(config(folders, tmp_path, align_tokens=False))
