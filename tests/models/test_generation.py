"""Laws of generation: every answer is what its prompt alone gives from full passes, whatever shares the batch."""

import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.models import generation
from sae_lens_crosscoder.models.generation import generate, similar_lengths
from tests.models.adapters import save_adapter, save_base
from tests.models.small_models import random_hooked_transformer, some_tokens

PROMPTS = [some_tokens(1, n, seed=n)[0] for n in (5, 9, 3, 12, 4)]
N_NEW, END = 8, 7


@pytest.fixture(scope="module", params=["HookedTransformer", "TransformerBridge", "AutoModelForCausalLM"])
def models(request, tmp_path_factory):
    """A base and a chat model of each host; the last two share one copy of the weights."""
    if request.param == "HookedTransformer":
        return [random_hooked_transformer(16, seed=seed) for seed in (1, 2)]
    folder = tmp_path_factory.mktemp("adapters")
    base = save_base(folder / "base")
    chat = f"{base}+adapter={save_adapter(folder / 'adapter', base)}"
    return list(slc.HookedModelPair.from_pretrained(base, chat, model_class_name=request.param).members)


@torch.no_grad()
def by_full_passes(model, prompt, choose):
    written = []
    while len(written) < N_NEW and END not in written:
        logits = model(torch.tensor([prompt.tolist() + written]), return_type="logits")[0, -1]
        written.append(choose(logits, len(written)))
    return written


class TestEqualsFullPasses:
    def test_the_most_likely_tokens(self, models):
        answers = [generate(model, PROMPTS, [END], max_new_tokens=N_NEW) for model in models]
        for model, of_model in zip(models, answers, strict=True):
            for prompt, answer in zip(PROMPTS, of_model, strict=True):
                assert answer.tolist() == by_full_passes(model, prompt, lambda logits, i: int(logits.argmax()))
        assert any(not torch.equal(*both) for both in zip(*answers, strict=True))  # the adapter is off and on

    def test_sampled_tokens(self, models):
        uniforms = torch.rand(len(PROMPTS), N_NEW, generator=torch.Generator().manual_seed(3))
        answers = generate(models[1], PROMPTS, [END], max_new_tokens=N_NEW, temperature=0.7, uniforms=uniforms)
        for prompt, answer, drawn in zip(PROMPTS, answers, uniforms.tolist(), strict=True):

            def choose(logits, i, drawn=drawn):
                total = 0.0
                for token, share in enumerate((logits.double() / 0.7).softmax(0).tolist()):
                    total += share
                    if total > drawn[i]:
                        return token
                raise AssertionError

            assert answer.tolist() == by_full_passes(models[1], prompt, choose)

    def test_the_prompt_is_read_in_pieces_where_logits_are_large(self, models, monkeypatch):
        prompts = [some_tokens(1, 12, seed=seed)[0] for seed in range(3)]
        expected = generate(models[1], prompts, [END], max_new_tokens=N_NEW)
        monkeypatch.setattr(generation, "_MAX_LOGITS", 1)
        for a, b in zip(generate(models[1], prompts, [END], max_new_tokens=N_NEW), expected, strict=True):
            assert torch.equal(a, b)


class TestLaws:
    MODEL = random_hooked_transformer(16, seed=1)

    def test_answers_do_not_depend_on_their_neighbours(self):
        together = generate(self.MODEL, PROMPTS, [END], max_new_tokens=N_NEW)
        for prompt, answer in zip(PROMPTS, together, strict=True):
            assert torch.equal(generate(self.MODEL, [prompt], [END], max_new_tokens=N_NEW)[0], answer)

    def test_an_answer_ends_with_the_first_end_or_at_its_length(self):
        longest = generate(self.MODEL, PROMPTS, [], max_new_tokens=N_NEW)
        assert [len(answer) for answer in longest] == [N_NEW] * len(PROMPTS)
        end = int(longest[0][2])
        for answer, uncut in zip(generate(self.MODEL, PROMPTS, [end], max_new_tokens=N_NEW), longest, strict=True):
            places = (uncut == end).nonzero().flatten().tolist()
            assert answer.tolist() == uncut[: places[0] + 1 if places else N_NEW].tolist()

    def test_ids_that_only_one_model_has_are_not_written(self):
        for answer in generate(self.MODEL, PROMPTS, [], max_new_tokens=N_NEW, d_vocab=5):
            assert int(answer.max()) < 5

    def test_samples_have_the_models_distribution(self):
        prompt, n = PROMPTS[0], 4000
        uniforms = torch.rand(n, 1, generator=torch.Generator().manual_seed(0))
        drawn = generate(self.MODEL, [prompt] * n, [], max_new_tokens=1, temperature=1.0, uniforms=uniforms)
        counts = torch.bincount(torch.cat(drawn), minlength=50) / n
        with torch.no_grad():
            shares = self.MODEL(prompt[None])[0, -1].softmax(dim=-1)
        assert (counts - shares).abs().max() < 4 * (shares.max() / n).sqrt()

    def test_batches_have_every_prompt_once_and_similar_lengths(self):
        lengths = torch.randint(1, 300, (200,), generator=torch.Generator().manual_seed(0)).tolist()
        batches = similar_lengths(lengths, batch_size=16)
        assert sorted(row for batch in batches for row in batch) == list(range(200))
        for batch in batches:
            found = [lengths[row] for row in batch]
            assert 1 <= len(batch) <= 16
            assert max(found) - min(found) <= 48
        assert len(batches) < 30

    def test_a_model_without_a_cache_is_refused(self):
        with pytest.raises(ValueError, match="A Linear cannot generate"):
            generate(torch.nn.Linear(2, 2), PROMPTS, [END], max_new_tokens=2)
