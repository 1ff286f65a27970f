"""Laws of generation: the most likely token by full passes, one prompt at a time; masks as of any conversation."""

from inspect import unwrap

import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.causal.patching import generation
from sae_lens_crosscoder.models.tiny import dialogues
from tests.causal.conftest import HOOK, LATENTS, Case, random_crosscoder
from tests.causal.test_patched import by_hand, hooks_of
from tests.models.small_models import gemma2, random_hooked_transformer, save_pair

ASKED = [messages[:1] for messages in dialogues(12, seed=3, split="held_out")]


@pytest.fixture(scope="module", params=["tiny", "TransformerBridge"])
def pair(request, tmp_path_factory):
    if request.param == "tiny":
        return slc.HookedModelPair.from_pretrained("tiny-base", "tiny-chat")
    folders = save_pair(tmp_path_factory.mktemp("models"), gemma2)
    return slc.HookedModelPair.from_pretrained(*folders, model_class_name="TransformerBridge")


def greedy(model, prompt, end, n):
    """Token by token, every one from a full pass over the prompt so far."""
    written = []
    while len(written) < n and end not in written:
        written.append(int(model(torch.tensor([prompt + written]))[0, -1].argmax()))
    return written


class TestResponses:
    def test_every_answer_is_the_most_likely_one_by_itself(self, pair):
        said = slc.causal.generate_responses(pair, ASKED, max_new_tokens=12, batch_size=3)
        end = pair.tokenizer.eos_token_id
        prompts = [slc.data.chat_tokens(pair.tokenizer, messages, add_generation_prompt=True) for messages in ASKED]
        assert len({len(prompt.input_ids) for prompt in prompts}) > 1
        for row, prompt in enumerate(prompts):
            ids = prompt.input_ids.tolist()
            answer = greedy(pair.chat, ids, end, 12)
            n = len(ids) + len(answer)
            assert said.tokens[row, :n].tolist() == ids + answer
            places = said.response[row].nonzero().flatten().tolist()
            assert places == list(range(len(ids), n))
            assert said.template[row, : len(ids)].tolist() == prompt.template.tolist()
            assert said.template[row, len(ids) :].tolist() == [i == n - 1 and answer[-1] == end for i in
                                                              range(len(ids), said.tokens.shape[1])]  # fmt: skip

    def test_the_masks_are_those_of_the_conversation_with_its_answer(self):
        pair = slc.HookedModelPair.from_pretrained("tiny-base", "tiny-chat")
        conversations = dialogues(12, seed=3, split="held_out")
        said = slc.causal.generate_responses(pair, [messages[:1] for messages in conversations], max_new_tokens=16)
        n_as_trained = 0
        for row, messages in enumerate(conversations):
            chat = slc.data.chat_tokens(pair.tokenizer, messages[:2])
            if said.tokens[row, : len(chat.input_ids)].tolist() == chat.input_ids.tolist():
                n_as_trained += 1
                for mask in ("response", "template"):
                    of_row = getattr(said, mask)[row]
                    assert of_row[: len(chat.input_ids)].tolist() == getattr(chat, mask).tolist()
                    assert not of_row[len(chat.input_ids) :].any()
        assert n_as_trained >= 10

    @pytest.mark.parametrize(
        ("conversations", "n", "message"), [([], 4, "is empty"), (ASKED, 60, r"max_new_tokens=60, but .* only 64")]
    )
    def test_refusals(self, pair, conversations, n, message):
        with pytest.raises(ValueError, match=message):
            slc.causal.generate_responses(pair, conversations, max_new_tokens=n)

    def test_a_model_that_cannot_be_asked_is_refused(self):
        pair = slc.HookedModelPair(*[random_hooked_transformer(8, seed=seed) for seed in (1, 2)])
        with pytest.raises(ValueError, match="no chat template"):
            slc.causal.generate_responses(pair, ASKED)


class TestGivenResponses:
    def test_masks_are_those_of_every_conversation_by_itself(self):
        pair = slc.HookedModelPair.from_pretrained("tiny-base", "tiny-chat")
        conversations = dialogues(20, seed=3, split="held_out")
        given = slc.causal.given_responses(pair, conversations)
        assert len({len(messages) for messages in conversations}) == 2  # with one answer and with two
        for row, messages in enumerate(conversations):
            chat = slc.data.chat_tokens(pair.tokenizer, messages)
            n = len(chat.input_ids)
            assert given.tokens[row, :n].tolist() == chat.input_ids.tolist()
            for mask in ("response", "template"):
                assert getattr(given, mask)[row, :n].tolist() == getattr(chat, mask).tolist()
                assert not getattr(given, mask)[row, n:].any()

    @pytest.mark.parametrize(
        ("conversations", "message"),
        [
            ([], "is empty"),
            (ASKED, "has no response to score"),
            ([10 * dialogues(1, 0)[0]], "holds only 64. Drop"),
        ],
    )
    def test_refusals(self, conversations, message):
        pair = slc.HookedModelPair.from_pretrained("tiny-base", "tiny-chat")
        with pytest.raises(ValueError, match=message):
            slc.causal.given_responses(pair, conversations)


class TestPatched:
    @pytest.mark.parametrize(("writer", "m"), [("base", 0), ("chat", 1)])
    @pytest.mark.parametrize("how", ["add", "ablate"])
    def test_every_token_is_that_of_models_patched_by_hand(self, case, writer, m, how):
        prompt = case.tokens[:, :5]
        with slc.patched(case.pair, case.crosscoder, LATENTS, how, coefficient=3.0):
            written = slc.causal.generate_patched(case.pair, prompt, writer, max_new_tokens=4, end=-1)
        models = (0,) if how == "add" else (0, 1)
        read = prompt
        for _ in range(4):
            logits = by_hand(Case(case.pair, case.crosscoder, read), LATENTS, how, models, coefficient=3.0)
            read = torch.cat([read, logits[:, -1, m].argmax(dim=-1)[:, None]], dim=1)
        assert torch.equal(written, read[:, 5:])

    def test_samples_are_drawn_from_the_patched_predictions(self, case):
        prompt, numbers = (
            case.tokens[:, :5],
            torch.rand(len(case.tokens), 3, generator=torch.Generator().manual_seed(2)),
        )
        with slc.patched(case.pair, case.crosscoder, LATENTS, "ablate"):
            sampled = {"max_new_tokens": 3, "end": -1, "temperature": 2.0, "seed": 2}
            written = slc.causal.generate_patched(case.pair, prompt, **sampled)
        read = prompt
        for number in numbers.T:
            logits = by_hand(Case(case.pair, case.crosscoder, read), LATENTS, "ablate", (0, 1))[:, -1, 1]
            reached = (logits.double() / 2.0).softmax(dim=-1).cumsum(dim=-1)
            read = torch.cat([read, (reached <= number[:, None]).sum(dim=-1, keepdim=True)], dim=1)
        assert torch.equal(written, read[:, 5:])

    @pytest.mark.parametrize("temperature", [-1.0, float("inf"), float("nan")])
    def test_a_temperature_without_meaning_is_refused(self, case, temperature):
        with pytest.raises(ValueError, match=r"temperature=.* must be 0, for the most likely token, or a positive"):
            slc.causal.generate_patched(case.pair, case.tokens, temperature=temperature)

    @pytest.mark.parametrize("writer", ["base", "chat"])
    def test_without_patches_it_is_what_the_model_writes(self, case, writer):
        model, prompt = getattr(case.pair, writer), case.tokens[:, :5]
        end = greedy(model, prompt[0].tolist(), None, 3)[2]
        written = slc.causal.generate_patched(case.pair, prompt, writer, max_new_tokens=6, end=end)
        for row, ids in zip(written.tolist(), prompt.tolist(), strict=True):
            answer = greedy(model, ids, end, 6)
            assert row == answer + [end] * (len(row) - len(answer))

    @pytest.mark.parametrize("read_by", ["own", "chat"])
    def test_only_new_tokens_are_read_and_nested_patches_and_masks_of_the_prompt_hold(self, case, read_by):
        prompt, marked = case.tokens[:, :5], torch.arange(5).expand(3, 5) > 2
        lengths = []
        with (
            slc.patched(case.pair, case.crosscoder, LATENTS[:1], "ablate", coefficient=3.0, positions=marked),
            slc.patched(case.pair, case.crosscoder, LATENTS[1:], "add", coefficient=3.0, read_by=read_by),
            case.pair.hooks(fwd_hooks=[(HOOK, lambda value, hook: lengths.append(value.shape[1]))]),
        ):
            written = slc.causal.generate_patched(case.pair, prompt, max_new_tokens=4, end=-1)
        assert lengths == [5, 1, 1, 1]
        read = prompt
        for _ in range(4):  # every token from full passes, with the mask as long as the tokens
            mask = torch.cat([marked, torch.zeros(3, read.shape[1] - 5, dtype=torch.bool)], dim=1)
            with (
                slc.patched(case.pair, case.crosscoder, LATENTS[:1], "ablate", coefficient=3.0, positions=mask),
                slc.patched(case.pair, case.crosscoder, LATENTS[1:], "add", coefficient=3.0, read_by=read_by),
            ):
                following = case.pair(read)[:, -1, 1].argmax(dim=-1)
            read = torch.cat([read, following[:, None]], dim=1)
        assert torch.equal(written, read[:, 5:])
        assert hooks_of(case.pair) == []

    def test_a_kind_of_model_without_such_a_cache_reads_everything_anew(self, case, monkeypatch):
        prompt = case.tokens[:, :5]
        with slc.patched(case.pair, case.crosscoder, LATENTS, "ablate", coefficient=3.0):
            expected = slc.causal.generate_patched(case.pair, prompt, max_new_tokens=4, end=-1)
            monkeypatch.setattr(generation, "with_caches", lambda pair: None)
            assert torch.equal(slc.causal.generate_patched(case.pair, prompt, max_new_tokens=4, end=-1), expected)

    def test_an_error_while_generating_leaves_no_state_behind(self, case):
        prompt, passes = case.tokens[:, :5], []

        def fail_at_the_second_pass(value, hook):
            passes.append(value.shape[1])
            if len(passes) == 2:
                raise RuntimeError("on purpose")

        with slc.patched(case.pair, case.crosscoder, LATENTS, "ablate", coefficient=3.0):
            expected = slc.causal.generate_patched(case.pair, prompt, max_new_tokens=4, end=-1)
            with pytest.raises(RuntimeError, match="on purpose"), case.pair.hooks([(HOOK, fail_at_the_second_pass)]):
                slc.causal.generate_patched(case.pair, prompt, max_new_tokens=4, end=-1)
            assert passes == [5, 1]
            assert torch.equal(slc.causal.generate_patched(case.pair, prompt, max_new_tokens=4, end=-1), expected)
        assert hooks_of(case.pair) == []

    def test_an_unknown_writer_is_refused(self, case):
        with pytest.raises(ValueError, match="Unknown writer='user'"):
            unwrap(slc.causal.generate_patched)(case.pair, case.tokens, "user")


def test_tiny_crosscoder_of_nothing_changes_no_answer():
    pair = slc.HookedModelPair.from_pretrained("tiny-base", "tiny-chat")
    said = slc.causal.generate_responses(pair, ASKED[:1], max_new_tokens=12)
    prompt = said.tokens[:, : int(said.response[0].long().argmax())]
    crosscoder = random_crosscoder((96, 96), dtype="float32")
    with slc.patched(pair, crosscoder, [], "ablate"):
        written = slc.causal.generate_patched(pair, prompt, max_new_tokens=12)
    assert written[0].tolist() == said.tokens[0][said.response[0]].tolist()
