"""Rows of the chat model's own answers are those of each prompt alone, and belong to their prompts."""

from types import SimpleNamespace

import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.causal import answer_rows
from sae_lens_crosscoder.data import Contrast

HOOK = "blocks.0.hook_resid_post"
PROMPTS = [[1, 5, 6], [1, 7, 8, 9], [1, 4, 4], [1, 9, 3, 3]]
OTHERS = [[1, 12, 13], [1, 14, 15, 9], [1, 16, 17], [1, 18, 19]]


def test_rows_of_each_answer():
    pair = slc.HookedModelPair.from_pretrained("tiny-base", "tiny-chat")
    prompts = [torch.tensor([prompt]) for prompt in (*PROMPTS, *OTHERS)]
    greedy = []
    for prompt in prompts:
        read = prompt
        for _ in range(5):
            read = torch.cat([read, pair.chat(read)[0, -1].argmax()[None, None]], dim=1)
        greedy.append(read[0, prompt.shape[1] :].tolist())
    # A token that ends some answers early; the chat model's own end comes too late to be seen here.
    end = greedy[0][2]
    answers = [answer[: answer.index(end) + 1] if end in answer else answer for answer in greedy]
    assert len({len(answer) for answer in answers}) > 1
    pair.tokenizer = SimpleNamespace(eos_token_id=end)
    contrast = Contrast.from_tokens("a", PROMPTS, OTHERS, padding_id=3)
    rows = answer_rows(pair, contrast, HOOK, max_new_tokens=5, batch_size=2)
    assert rows.name == "a answers"
    expected = {}
    for index, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        stacked = pair.activations(torch.cat([prompt, torch.tensor([answer])], dim=1), HOOK)[0, prompt.shape[1] :]
        expected.setdefault((bool(contrast.positive[index]), bool(contrast.held_out[index])), []).append(stacked)
    for (positive, held_out), parts in expected.items():
        found = rows.part(held_out)[0 if positive else 1]
        of_prompts = torch.cat(parts)
        order, reference = found[:, 0].argsort(), of_prompts[:, 0].argsort()
        torch.testing.assert_close(found[order], of_prompts[reference], atol=1e-4, rtol=1e-3)
