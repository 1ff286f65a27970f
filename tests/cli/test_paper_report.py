"""`sae-lens-crosscoder paper-report` finds the crosscoders and the tokens, or says what it lacks."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.cli import main
from sae_lens_crosscoder.data.labelled_rows import labelled_rows, tiny_labelled_rows
from sae_lens_crosscoder.models.tiny import TINY_HOOK, dialogues
from tests.loading.foreign_files import LAYOUTS

PAIR = ("tiny-base", "tiny-chat")
RUN = ["--output-path", "out", "--images"]  # no images


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def save(folder, seed=0, names=PAIR, d_model=96):
    """A random crosscoder in a folder, which says only which models and hook it is of."""
    crosscoder = slc.ReLUCrosscoder(slc.ReLUCrosscoderConfig(d_model=d_model, d_sae=24))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        crosscoder.W_dec.copy_(torch.randn(crosscoder.W_dec.shape, generator=generator))
        crosscoder.W_enc.copy_(0.1 * crosscoder.W_dec.T)
    metadata = crosscoder.cfg.metadata
    metadata.model_name, metadata.chat_model_name = names
    metadata.hook_name = TINY_HOOK
    crosscoder.save_model(folder)
    return slc.load(folder)


def measured(rows, folder="one"):
    pair = slc.HookedModelPair.from_pretrained(*PAIR)
    data = slc.EvalData(pair=pair, tokens=rows.tokens, groups=rows.groups, sources=rows.sources)
    return slc.paper.paper_tables({"one": slc.load(folder)}, data)["one"].latents


def written(name):
    return pd.read_parquet("out/latents.parquet").loc[name]


def test_the_built_in_pair_brings_its_own_rows(capsys):
    save("one")
    assert main(["paper-report", "one", *RUN, "--n_rows", "6"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("one: ")
    assert shown[1:] == ["out/latents.parquet", "out/paper.html", "out/paper.json"]
    pd.testing.assert_frame_equal(written("one"), measured(tiny_labelled_rows(6)))
    assert written("one").frac_template.notna().any()


def test_several_crosscoders_of_a_folder_come_side_by_side():
    save("both/a", 1), save("both/b", 2)
    assert main(["paper-report", "both", *RUN, "--n_rows", "4"]) == 0
    content = json.loads(Path("out/paper.json").read_text())
    assert set(content["crosscoders"]) == {"a", "b"}
    assert content["crosscoders"]["a"]["manifest"]["n_tokens"] == 4 * 64
    heads = set(re.findall("this crosscoder: (\\w+)", Path("out/paper.html").read_text()))
    assert heads == {"a", "b"}


def test_conversations_and_texts_of_files_are_measured_with_their_template():
    save("one")
    chats, texts = dialogues(4, seed=0), ["paris is in france ."] * 3
    Path("chats.jsonl").write_text("\n".join(map(json.dumps, chats)) + "\n")
    Path("texts.txt").write_text("\n\n".join(texts))
    pair = slc.HookedModelPair.from_pretrained(*PAIR)
    files = ["--chats", "chats.jsonl", "--texts", "texts.txt"]
    assert main(["paper-report", "one", *RUN, *files, "--n_rows", "3", "--max-length", "12"]) == 0
    expected = measured(labelled_rows(pair.tokenizer, chats[:3], texts, max_length=12))
    pd.testing.assert_frame_equal(written("one"), expected)
    assert written("one").filter(like="_web").notna().any(axis=None)


def test_an_activation_cache_is_data_enough():
    crosscoder = save("one")
    pair = slc.HookedModelPair.from_pretrained(*PAIR)
    tokens = tiny_labelled_rows(8).tokens
    cache = slc.cache_activations("cache", pair, tokens, TINY_HOOK)
    assert main(["paper-report", "one", *RUN, "--activations", "cache"]) == 0
    expected = slc.paper.paper_tables({"one": crosscoder}, slc.EvalData(activations=cache))["one"].latents
    pd.testing.assert_frame_equal(written("one"), expected)
    assert "frac_template" not in expected


def test_what_training_held_out_is_the_data_of_other_pairs():
    flags = "--model_name tiny-base --chat-model-name tiny-base+jitter=0.02 --dataset_path tiny-mix --context_size 64 "
    flags += "--d_model 96 --d-sae 32 --k 4 --training_tokens 640 --train_batch_size_tokens 64 --lr_warm_up_steps 2 "
    flags += "--n_held_out_rows 8 --checkpoint_path None --output_path one --hook_name"
    assert main(["train", *flags.split(), TINY_HOOK]) == 0
    assert main(["paper-report", "one", *RUN]) == 0
    diagnosed = slc.Diagnosis.load("one").latents
    pd.testing.assert_frame_equal(written("one")[diagnosed.columns], diagnosed)
    assert main(["paper-report", "one", *RUN, "--n_rows", "2"]) == 0
    content = json.loads(Path("out/paper.json").read_text())
    assert content["crosscoders"]["one"]["manifest"]["n_tokens"] == 2 * 64


@pytest.mark.filterwarnings("ignore:.*was loaded as .*, with assumed settings:UserWarning")
def test_a_foreign_crosscoder_says_what_it_lacks(capsys):
    LAYOUTS["B"].write(Path("theirs"))
    assert main(["paper-report", "theirs", *RUN, "--model_names", "a", "b"]) == 2
    assert "theirs has no runner_cfg.json, so its held-out rows are unknown" in capsys.readouterr().err
    save("one")
    assert main(["paper-report", "one", *RUN, "--hook-name", "here"]) == 2
    assert "hook_name cannot be set for a crosscoder of this package" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nowhere"], "'nowhere' is neither a local folder nor a Hub id"),
        (["one", "--n_rows", "0"], "n_rows=0 must be at least 1"),
        (["one", "--chats", "none.jsonl"], "none.jsonl"),
        (["one", "--chats", "bad.jsonl"], "bad.jsonl, conversation 2: expected a JSON list of messages"),
        (["one", "--texts", "empty.txt"], "empty.txt is empty"),
        (
            ["one", "--chats", "bad.jsonl", "--activations", "cache"],
            "either `activations` or `chats`",
        ),
        (["one", "--activations", "cache"], "cache is not an activation cache"),
        (["pairs"], "must contain crosscoders of one named pair of models"),
    ],
)
def test_a_mistake_is_one_clear_line(args, message, capsys):
    save("one")
    save("pairs/a"), save("pairs/b", names=("tiny-base", "tiny-null"))
    Path("bad.jsonl").write_text('[{"role": "user", "content": "a"}]\n{"role": "user"}\n')
    Path("empty.txt").write_text("\n \n")
    assert main(["paper-report", *args, *RUN]) == 2
    assert message in capsys.readouterr().err
    assert not Path("out", "paper.html").exists()
