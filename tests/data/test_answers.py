"""Laws of answers: both models' own words after every prompt, labelled, kept on disk, and equal for all workers."""

import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.data import AnswerSettings, generate_answers
from sae_lens_crosscoder.data.answer_files import AnswerFiles, models_of
from sae_lens_crosscoder.data.chat_tokens import chat_tokens, end_of_turn_ids
from sae_lens_crosscoder.data.constant_prefix import constant_prefix, occurrences, template_prefix
from sae_lens_crosscoder.models.tiny import dialogues
from tests.killing import killed_at

ASKED = [messages[:1] for messages in dialogues(14, seed=3, split="held_out")]
SETTINGS = AnswerSettings(max_new_tokens=12, batch_size=4)
FIELDS = ("tokens", "lengths", "starts", "prompts", "ended")


@pytest.fixture(scope="module")
def pair():
    return slc.HookedModelPair.from_pretrained("tiny-base", "tiny-chat")


@pytest.fixture(scope="module")
def answers(pair):
    return generate_answers(pair, ASKED, SETTINGS)


def files(pair, folder, settings=SETTINGS, asked=ASKED):
    chats = [chat_tokens(pair.tokenizer, messages, add_generation_prompt=True) for messages in asked]
    return AnswerFiles(folder, models_of(pair), chats, end_of_turn_ids(pair.tokenizer, asked[0]), settings)


def assert_equal(first, second):
    assert first.writers == second.writers
    for name in FIELDS:
        assert torch.equal(getattr(first, name), getattr(second, name)), name
    assert torch.equal(first.groups.labels, second.groups.labels)


@torch.no_grad()
def greedy(model, prompt, end):
    written = []
    while len(written) < SETTINGS.max_new_tokens and end not in written:
        written.append(int(model(torch.tensor([prompt + written]))[0, -1].argmax()))
    return written


class TestRows:
    def test_each_row_is_a_prompt_with_what_a_model_writes_after_it(self, pair, answers):
        end = pair.tokenizer.eos_token_id
        found = {}
        for row, writer in enumerate(answers.writers):
            start, length = int(answers.starts[row]), int(answers.lengths[row])
            messages = ASKED[int(answers.prompts[row])]
            prompt = chat_tokens(pair.tokenizer, messages, add_generation_prompt=True).input_ids.tolist()
            assert answers.tokens[row, :start].tolist() == prompt
            words = answers.tokens[row, start:length].tolist()
            for name, model in (("base", pair.base), ("chat", pair.chat)):
                if writer in (name, "both"):
                    assert words == greedy(model, prompt, end)
                    found.setdefault(int(answers.prompts[row]), []).append(name)
            assert bool(answers.ended[row]) == (words[-1] == end)
        assert {prompt: sorted(names) for prompt, names in found.items()} == {
            i: ["base", "chat"] for i in range(len(ASKED))
        }
        assert {"base", "chat"} <= set(answers.writers)

    def test_groups_say_whose_words_follow_and_where_the_answer_is_decided(self, pair, answers):
        names = answers.groups.names
        for row, writer in enumerate(answers.writers):
            start, length = int(answers.starts[row]), int(answers.lengths[row])
            labels = answers.groups.labels[row]
            assert torch.equal(labels >= 0, torch.arange(len(labels)) < length)
            assert names[labels[0]] == "bos"
            assert [i for i in range(length) if names[labels[i]] == "template decision"] == [start - 1]
            assert answers.is_decision[row].nonzero().flatten().tolist() == [start - 1]
            of_answer = [i for i in range(length) if names[labels[i]] == f"answer {writer}"]
            assert of_answer == list(range(start, length - int(answers.ended[row])))
            assert answers.is_answer[row].nonzero().flatten().tolist() == list(range(start, length))
        assert answers.groups.is_template[names.index("template decision")]

    def test_rows_of_a_prompt_are_equal_up_to_the_decision(self, answers):
        assert answers.prompts[answers.decision_rows].tolist() == list(range(len(ASKED)))
        for row, prompt in enumerate(answers.prompts.tolist()):
            first, end = int(answers.decision_rows[prompt]), int(answers.decisions[row]) + 1
            assert torch.equal(answers.tokens[row, :end], answers.tokens[first, :end])

    def test_both_models_read_both_answers(self, pair, answers):
        data = slc.EvalData(
            pair=pair,
            tokens=answers.tokens,
            token_mask=answers.token_mask,
            groups=answers.groups,
            sources=answers.writers,
        )
        activations = pair.activations(data.contexts[0], slc.models.TINY_HOOK)
        assert activations.shape[:2] == answers.tokens.shape

    def test_texts_are_requests_and_later_turns_are_left_out(self, pair, answers):
        texts = [messages[0]["content"] for messages in ASKED]
        longer = [[*messages, {"role": "assistant", "content": "paris"}] for messages in ASKED]
        for prompts in (texts, longer):
            assert_equal(generate_answers(pair, prompts, SETTINGS), answers)


class TestConstantPrefix:
    def test_statistics_leave_out_padding_and_what_no_prompt_changes(self, pair, answers):
        prefix = template_prefix(pair.tokenizer)
        assert answers.n_constant >= len(prefix) == 2
        equal = pair.activations(answers.tokens, slc.models.TINY_HOOK)[:, : answers.n_constant]
        assert (equal == equal[:1]).all()
        for row, length in enumerate(answers.lengths.tolist()):
            kept = answers.token_mask[row].nonzero().flatten().tolist()
            assert kept == list(range(answers.n_constant, length))

    def test_it_is_the_longest_common_start_and_never_the_decision(self):
        rows = [torch.tensor(row) for row in ([1, 2, 3, 9], [1, 2, 4, 9], [1, 2, 3, 9, 9])]
        assert constant_prefix(rows).tolist() == [1, 2]
        assert constant_prefix([torch.tensor([1, 2]), torch.tensor([1, 2, 3])]).tolist() == [1]
        assert constant_prefix(rows[:1]).tolist() == []

    def test_it_is_found_wherever_it_stands_as_by_a_loop(self):
        generator = torch.Generator().manual_seed(0)
        tokens, sequence = torch.randint(0, 3, (40, 12), generator=generator), [0, 1, 0]
        found = occurrences(tokens, torch.tensor(sequence))
        for row, marks in zip(tokens.tolist(), found.tolist(), strict=True):
            expected = [False] * len(row)
            for start in range(-2, len(row)):
                places = [i for i in range(start, start + 3) if 0 <= i < len(row)]
                if all(row[i] == sequence[i - start] for i in places):
                    for i in places:
                        expected[i] = True
            assert marks == expected


class TestOnDisk:
    def test_a_second_call_reads_what_the_first_wrote(self, pair, answers, tmp_path, monkeypatch):
        assert_equal(generate_answers(pair, ASKED, SETTINGS, tmp_path), answers)
        monkeypatch.setattr("sae_lens_crosscoder.data.answer_files.generate", None)
        assert_equal(generate_answers(pair, ASKED, SETTINGS, tmp_path), answers)
        assert_equal(files(pair, tmp_path).load(), answers)

    @pytest.mark.parametrize("n", [0, 3, 9, 20])
    def test_a_killed_call_is_finished_by_the_next(self, pair, answers, tmp_path, n):
        assert killed_at(n, tmp_path, lambda: generate_answers(pair, ASKED, SETTINGS, tmp_path))
        assert_equal(generate_answers(pair, ASKED, SETTINGS, tmp_path), answers)

    def test_workers_begin_with_disjoint_shares_and_all_return_the_same(self, pair, answers, tmp_path):
        order = []
        shared = [files(pair, tmp_path) for _ in range(3)]
        for worker, each in enumerate(shared):
            written = each._batch
            each._batch = lambda p, name, i, w=worker, f=written: order.append((w, name, i)) or f(p, name, i)
            assert_equal(each.generate(pair, worker=(worker, 3)), answers)
        first_of = [[job for worker, *job in order if worker == w] for w in range(3)]
        n_jobs = len(first_of[0])
        starts = [tuple(job) for jobs in first_of for job in jobs[: n_jobs // 3]]
        assert len(set(starts)) == len(starts)

    def test_damaged_and_missing_files_are_named(self, pair, tmp_path):
        generate_answers(pair, ASKED, SETTINGS, tmp_path)
        path = next(tmp_path.rglob("chat-00001.safetensors"))
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"chat-00001.*checksum mismatch.*generated again"):
            generate_answers(pair, ASKED, SETTINGS, tmp_path)
        path.unlink()
        with pytest.raises(ValueError, match=r"chat-00001.* is missing"):
            files(pair, tmp_path).load()

    def test_other_models_prompts_and_settings_have_other_folders(self, pair, tmp_path):
        null = slc.HookedModelPair.from_pretrained("tiny-base", "tiny-null")
        unnamed = [slc.HookedModelPair(p.base, p.chat) for p in (pair, null)]
        variants = [
            *(files(p, tmp_path) for p in (pair, null, *unnamed)),
            files(pair, tmp_path, asked=ASKED[1:]),
            files(pair, tmp_path, AnswerSettings(max_new_tokens=11, batch_size=4)),
            files(pair, tmp_path, AnswerSettings(max_new_tokens=12, batch_size=4, temperature=0.5)),
            files(pair, tmp_path, AnswerSettings(max_new_tokens=12, batch_size=4, temperature=0.5, seed=1)),
        ]
        assert len({each.folder for each in variants}) == len(variants)

    def test_one_model_alone_answers_as_in_the_pair(self, pair, tmp_path):
        settings = AnswerSettings(max_new_tokens=12, batch_size=4, temperature=1.0)
        both = files(pair, None, settings).generate(pair)
        texts = files(pair, tmp_path, settings).of_one(pair, "chat")
        assert len(texts) == len(ASKED)
        assert {path.name.partition("-")[0] for path in tmp_path.rglob("*.safetensors")} == {"chat"}
        for row, (prompt, writer) in enumerate(zip(both.prompts.tolist(), both.writers, strict=True)):
            if writer != "base":
                expected = both.tokens[row, int(both.starts[row]) : int(both.lengths[row])]
                assert torch.equal(texts[prompt], expected)


class TestSampling:
    def test_samples_follow_seed_and_prompt_alone(self, pair):
        def sampled(asked, seed, batch_size):
            settings = AnswerSettings(max_new_tokens=12, temperature=2.0, seed=seed, batch_size=batch_size)
            return generate_answers(pair, asked, settings)

        first = sampled(ASKED, 0, 4)
        assert_equal(first, sampled(ASKED, 0, 3))
        assert not torch.equal(first.lengths, sampled(ASKED, 1, 4).lengths)
        backwards = sampled(ASKED[::-1], 0, 4)
        for row, prompt in enumerate(first.prompts.tolist()):
            same = [r for r, p in enumerate(backwards.prompts.tolist())
                    if p == len(ASKED) - 1 - prompt and backwards.writers[r] == first.writers[row]]  # fmt: skip
            n = int(first.lengths[row])
            assert torch.equal(backwards.tokens[same[0], :n], first.tokens[row, :n])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0 of answers must be at least 1"),
        ({"batch_size": 0}, "batch_size=0 of answers must be at least 1"),
        ({"temperature": -1.0}, "temperature=-1.0 of answers must be 0"),
        ({"temperature": float("nan")}, "temperature=nan of answers must be 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        AnswerSettings(**change)


def test_prompts_that_cannot_be_answered_are_refused(pair):
    for prompts, message in (
        ([], "`prompts` is empty"),
        ([[{"role": "assistant", "content": "paris"}]], "no message of the user"),
    ):
        with pytest.raises(ValueError, match=message):
            generate_answers(pair, prompts)
    with pytest.raises(ValueError, match=r"max_new_tokens=64, but the model's context holds only 64"):
        generate_answers(pair, ASKED)
