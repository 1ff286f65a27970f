"""Where activations come from: rows that are held out, and models that read them."""

from pathlib import Path

import pytest
import torch
from datasets import Dataset, DatasetDict, IterableDataset

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.activations.harvest import harvest
from sae_lens_crosscoder.data.sources import hold_out, load_rows
from sae_lens_crosscoder.models.tiny import TINY_CONTEXT_SIZE, TINY_DATASET, TINY_HOOK


@pytest.mark.parametrize("streaming", [False, True])
def test_held_out_rows_and_training_rows_are_disjoint_and_complete(streaming):
    rows = Dataset.from_dict({"tokens": [[i] for i in range(10)]})
    train, held_out = hold_out(rows.to_iterable_dataset() if streaming else rows, 3)
    assert [row["tokens"] for row in held_out] == [[0], [1], [2]]
    assert [row["tokens"] for row in train] == [[i] for i in range(3, 10)]


def test_no_row_is_lost_or_shared_when_nothing_is_held_out():
    train, held_out = hold_out(Dataset.from_dict({"tokens": [[1], [2]]}), 0)
    assert [row["tokens"] for row in train] == [[1], [2]]
    assert list(held_out) == []


def test_a_dataset_that_saelens_has_trained_on_can_be_trained_on():
    rows = Dataset.from_dict({"tokens": [[1], [2]], "kind": [[0], [0]]})
    rows.set_format("torch", columns=["tokens"])
    train, held_out = hold_out(rows, 1)
    assert [row["tokens"] for row in train] == [[2]]
    assert [row["tokens"] for row in held_out] == [[1]]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("n_rows", "n_held_out", "message"),
    [
        (0, 1, "The dataset is empty"),
        (2, 2, "n_held_out_rows=2 takes the whole dataset"),
        (2, 5, "n_held_out_rows=5 takes the whole dataset"),
        (2, -1, "n_held_out_rows=-1 must not be negative"),
    ],
)
def test_too_few_rows_are_refused(streaming, n_rows, n_held_out, message):
    rows = [{"tokens": [i]} for i in range(n_rows)]
    streamed = IterableDataset.from_generator(lambda: iter(rows))
    with pytest.raises(ValueError, match=message):
        hold_out(streamed if streaming else Dataset.from_list(rows), n_held_out)


def test_the_built_in_rows_are_their_seed_and_enough():
    options = dict(streaming=False, n_tokens=10 * TINY_CONTEXT_SIZE + 1, n_held_out_rows=3)
    first, again, other = (load_rows(TINY_DATASET, seed=seed, **options)["input_ids"] for seed in (0, 0, 1))
    assert len(first) == 14
    assert list(first) == list(again) != list(other)


@pytest.mark.parametrize("path", ["tiny-mxi", "rows.jsonl"])
def test_a_path_that_is_no_dataset_is_refused_with_the_way_out(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text('{"text": "a"}')
    with pytest.raises(ValueError, match=r"The only one is 'tiny-mix'|is a file. Only a mix reads files"):
        load_rows(path, streaming=False, n_tokens=1, n_held_out_rows=0, seed=0)


def test_negative_token_ids_are_refused_before_anything_runs():
    pair = slc.HookedModelPair.from_pretrained("tiny-base", "tiny-chat")
    with pytest.raises(ValueError, match="tokens contains the id -100"):
        harvest(pair, torch.tensor([[1, 2, -100]]), TINY_HOOK)


def test_of_a_saved_dict_of_splits_the_training_split_is_read(tmp_path):
    splits = {"test": [[7]], "train": [[1], [2]]}
    saved = DatasetDict({name: Dataset.from_dict({"tokens": rows}) for name, rows in splits.items()})
    saved.save_to_disk(tmp_path / "splits")
    rows = load_rows(str(tmp_path / "splits"), streaming=False, n_tokens=1, n_held_out_rows=0, seed=0)
    assert list(rows["tokens"]) == [[1], [2]]


def test_rows_are_read_from_where_the_path_says(tmp_path):
    rows = Dataset.from_dict({"input_ids": [[1, 2], [3, 4]]})
    rows.save_to_disk(tmp_path / "saved")
    options = dict(streaming=False, n_tokens=640, n_held_out_rows=2, seed=0)
    assert list(load_rows(str(tmp_path / "saved"), **options)["input_ids"]) == [[1, 2], [3, 4]]
    assert len(load_rows(TINY_DATASET, **options)) == 12
    with pytest.raises(ValueError, match="dataset_path is empty"):
        load_rows("", **options)
    (tmp_path / "texts").mkdir()
    rows.to_json(tmp_path / "texts" / "train.jsonl")
    assert list(load_rows(str(tmp_path / "texts"), **options)["input_ids"]) == [[1, 2], [3, 4]]


def test_harvested_activations_are_the_pairs_in_order():
    pair = slc.HookedModelPair.from_pretrained("tiny-base", "tiny-chat")
    tokens = torch.arange(12).view(3, 4)
    together = torch.cat(list(harvest(pair, tokens, TINY_HOOK, batch_size=2)))
    torch.testing.assert_close(together, pair.activations(tokens, TINY_HOOK).flatten(0, 1))
    with pytest.raises(ValueError, match="no common hook"):
        harvest(pair, tokens, "blocks.7.hook_resid_post")
    with pytest.raises(ValueError, match="non-empty"):
        harvest(pair, tokens[:0], TINY_HOOK)
