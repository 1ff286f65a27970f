"""Groups of packed rows are those of the generator that packed them."""

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from sae_lens_crosscoder.data.token_groups import PACKED_GROUPS, packed_token_groups
from sae_lens_crosscoder.models.tiny import tiny_dataset, tiny_tokenizer

ROLES = ("text", "user", "assistant", "template")
"""By `tiny_dataset`'s number."""


def named(groups):
    return [[groups.names[label] for label in row] for row in groups.labels.tolist()]


def expected_of(rows, bos):
    return [
        ["bos" if token == bos else ROLES[role] for token, role in zip(row["input_ids"], row["role"], strict=True)]
        for row in rows
    ]


def test_groups_are_the_generators():
    tokenizer, rows = tiny_tokenizer(), tiny_dataset(200, seed=5)
    found = packed_token_groups(torch.tensor(rows["input_ids"]), tokenizer)
    assert named(found) == expected_of(rows, tokenizer.bos_token_id)
    assert {name for row in named(found) for name in row} == set(PACKED_GROUPS)


def test_a_row_that_begins_or_ends_within_a_turn_is_told_by_the_next_piece():
    tokenizer, rows = tiny_tokenizer(), tiny_dataset(30, seed=6)
    tokens, expected = torch.tensor(rows["input_ids"]), expected_of(rows, tokenizer.bos_token_id)
    n_cut = 0
    for row, roles in zip(tokens, expected, strict=True):
        for start in (i for i in range(1, 50) if roles[i] in ("user", "assistant") and "template" in roles[i:]):
            found = named(packed_token_groups(row[None, start:], tokenizer))[0]
            assert found == roles[start:]
            n_cut += 1
        for end in (i for i in range(10, 64) if roles[i] == "template"):  # perhaps within a piece
            assert named(packed_token_groups(row[None, :end], tokenizer))[0] == roles[:end]
    assert n_cut > 100


def test_a_tokenizer_without_a_template_is_refused():
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer().backend_tokenizer)
    with pytest.raises(ValueError, match="no chat template"):
        packed_token_groups(torch.tensor([[1, 2]]), tokenizer)


def test_what_is_left_out_has_no_group_and_padding_changes_none():
    tokenizer = tiny_tokenizer()
    tokens = torch.tensor(tiny_dataset(8, seed=2)["input_ids"])
    random = torch.Generator().manual_seed(0)
    for end in range(20, 30):  # which cuts the template at all of its tokens
        padding = tokens[torch.randint(8, tokens.shape, generator=random), torch.arange(64)]
        token_mask = torch.rand(tokens.shape, generator=random) < 0.8
        token_mask[:, end - 1], token_mask[:, end:], token_mask[3] = True, False, False
        found = packed_token_groups(torch.where(torch.arange(64) < end, tokens, padding), tokenizer, token_mask)
        expected = packed_token_groups(tokens[:, :end], tokenizer).labels
        assert torch.equal(found.labels[token_mask], expected[token_mask[:, :end]])
        assert bool((found.labels[~token_mask] == -1).all())
