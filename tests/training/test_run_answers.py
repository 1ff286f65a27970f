"""Laws of a run on the models' own answers: generated once, held out by prompt, equal at every start."""

import json

import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.data import AnswerSettings, generate_answers
from sae_lens_crosscoder.data.constant_prefix import occurrences, template_prefix
from sae_lens_crosscoder.models.tiny import TINY_HOOK, dialogues, tiny_tokenizer
from sae_lens_crosscoder.training.data import run_answers
from sae_lens_crosscoder.training.data.run_cache import load_run_cache, write_run_cache
from tests.data.data_files import text_file

ASKED = [messages[0]["content"] for messages in dialogues(16, seed=3, split="held_out")]
N_HELD_OUT, N_NEW = 6, 12


@pytest.fixture(autouse=True)
def count_generations(monkeypatch):
    """The number of batches that are generated."""
    counts = []
    monkeypatch.setattr(
        "sae_lens_crosscoder.data.answer_files.generate",
        lambda *args, original=slc.data.answer_files.generate, **kwargs: counts.append(1) or original(*args, **kwargs),
    )
    return counts


def config(folder, source, packing="one_document", **fields):
    settings = dict(
        sae=slc.L1CrosscoderTrainingConfig(d_model=96, d_sae=32),
        model_name="tiny-base",
        chat_model_name="tiny-chat",
        hook_name=TINY_HOOK,
        mix=slc.DataMix([source] if isinstance(source, slc.MixSource) else source),
        packing=packing,
        context_size=48,
        training_tokens=256,
        train_batch_size_tokens=64,
        store_batch_size_prompts=4,
        n_held_out_rows=N_HELD_OUT,
        lr_warm_up_steps=1,
        checkpoint_path=str(folder / "checkpoints"),
        output_path=str(folder / "output"),
    )
    return slc.CrosscoderRunnerConfig(**{**settings, **fields})


def of_prompts(**fields):
    return slc.MixSource(kind="answers", prompts=ASKED, max_new_tokens=N_NEW, **fields)


def expected_rows(pair, size=48):
    """The documents of each prompt, padded by hand."""
    answers = generate_answers(pair, ASKED, AnswerSettings(max_new_tokens=N_NEW, batch_size=4))
    padding = pair.tokenizer.pad_token_id
    rows = [[] for _ in ASKED]
    for row, prompt in enumerate(answers.prompts.tolist()):
        ids = answers.tokens[row, : int(answers.lengths[row])].tolist()
        rows[prompt].append(ids + [padding] * (size - len(ids)))
    return rows


def test_rows_are_the_answers_and_held_out_prompts_are_never_trained_on(tmp_path, count_generations):
    runner = slc.CrosscoderTrainingRunner(config(tmp_path, of_prompts()))
    assert len(count_generations) == 2 * 4
    rows = expected_rows(runner.pair)
    assert runner.held_out_tokens.tolist() == [row for prompt in rows[:N_HELD_OUT] for row in prompt]
    training = [row["input_ids"] for row in runner.activations_store.dataset]
    assert training == [row for prompt in rows[N_HELD_OUT:] for row in prompt]


def test_the_constant_start_and_padding_are_left_out_of_training(tmp_path):
    runner = slc.CrosscoderTrainingRunner(config(tmp_path, of_prompts()))
    tokens, mask = runner.held_out_tokens, runner.held_out_kept
    prefix = template_prefix(runner.tokenizer)
    is_special = torch.isin(tokens, torch.tensor([runner.tokenizer.pad_token_id]))
    assert torch.equal(mask, ~occurrences(tokens, prefix) & ~is_special)
    assert not mask[:, 1 : 1 + len(prefix)].any()
    assert mask[:, 1 + len(prefix)].all()
    store = runner.held_out_store
    served = store.get_filtered_llm_batch()
    expected = runner.pair.activations(tokens[:4], TINY_HOOK)[mask[:4]]
    torch.testing.assert_close(served, expected)
    with_all = slc.CrosscoderTrainingRunner(config(tmp_path, of_prompts(), exclude_constant_prefix=False))
    assert torch.equal(with_all.held_out_kept, ~is_special)


def test_answers_are_generated_once_and_every_run_trains_the_same(tmp_path, count_generations):
    states = []
    for _ in range(2):
        crosscoder = slc.CrosscoderTrainingRunner(config(tmp_path, of_prompts())).run()
        states.append(crosscoder.state_dict())
        assert len(count_generations) == 2 * 4
    for name, weights in states[0].items():
        assert torch.equal(weights, states[1][name])
    pair = slc.HookedModelPair.from_pretrained("tiny-base", "tiny-chat")
    slc.CrosscoderTrainingRunner(config(tmp_path, of_prompts()), override_model=pair)
    assert len(count_generations) == 2 * 4
    slc.CrosscoderTrainingRunner(config(tmp_path, of_prompts(), answers_path=str(tmp_path / "elsewhere")))
    assert len(count_generations) == 4 * 4


def test_prompts_come_from_lists_and_files_alike(tmp_path):
    conversations = [[{"role": "user", "content": text}, {"role": "assistant", "content": "paris"}] for text in ASKED]
    (tmp_path / "prompts.json").write_text(json.dumps({"train": [{"prompt": t, "trigger": True} for t in ASKED]}))
    (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps({"prompt": text}) for text in ASKED))
    (tmp_path / "chats.jsonl").write_text("\n".join(json.dumps({"messages": each}) for each in conversations))
    (tmp_path / "prompts.txt").write_text("\n".join(ASKED))
    options = {"kind": "answers", "max_new_tokens": N_NEW}
    expected = run_answers._prompts(of_prompts(), tiny_tokenizer(), 36)[1]
    for name in ("prompts.json", "prompts.jsonl", "chats.jsonl", "prompts.txt"):
        found = run_answers._prompts(slc.MixSource(str(tmp_path / name), **options), tiny_tokenizer(), 36)[1]
        assert [chat.input_ids.tolist() for chat in found] == [chat.input_ids.tolist() for chat in expected]
    few = run_answers._prompts(
        slc.MixSource(str(tmp_path / "prompts.txt"), n_prompts=3, **options), tiny_tokenizer(), 36
    )
    assert len(few[1]) == 3


def test_cached_activations_are_those_of_the_run(tmp_path):
    cfg = config(tmp_path, of_prompts(), cached_activations_path=str(tmp_path / "cache"))
    write_run_cache(cfg, dtype="float32")
    held_out = load_run_cache(cfg)[1]
    runner = slc.CrosscoderTrainingRunner(cfg)
    expected = runner.pair.activations(runner.held_out_tokens, TINY_HOOK)[runner.held_out_kept]
    torch.testing.assert_close(torch.cat(list(held_out)), expected, rtol=1e-4, atol=1e-5)


def test_other_sources_are_checked_before_the_models_run(tmp_path, count_generations):
    web = text_file(tmp_path, 8)
    with pytest.raises(ValueError, match="no column 'words'"):
        slc.CrosscoderTrainingRunner(config(tmp_path, [of_prompts(), slc.MixSource(web, column="words")]))
    assert not count_generations


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (lambda: slc.MixSource(kind="answers"), "has no path"),
        (lambda: slc.MixSource("a.txt", prompts=["x"], kind="answers"), "no path, got 'a.txt'"),
        (lambda: slc.MixSource(prompts=["x"]), "prompts need kind='answers'"),
        (lambda: slc.MixSource("a.txt", kind="answers", n_prompts=0), "n_prompts=0 must be at least 1"),
    ],
)
def test_sources_that_cannot_be_are_refused(source, message):
    with pytest.raises(ValueError, match=message):
        source()


def test_prompts_without_room_for_an_answer_are_counted(tmp_path, caplog):
    source = slc.MixSource(kind="answers", prompts=[*ASKED, "paris " * 60], max_new_tokens=N_NEW)
    assert len(run_answers._prompts(source, tiny_tokenizer(), 36)[1]) == len(ASKED)
    assert "skipped 1 prompts that leave no room" in caplog.text
    with pytest.raises(ValueError, match="has no prompt to answer: 1 are longer"):
        run_answers._prompts(slc.MixSource(kind="answers", prompts=["paris " * 60]), tiny_tokenizer(), 36)
