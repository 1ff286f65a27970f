"""The recipe's script for published latents, on random weights in the layout of the published ones."""

import importlib.util
import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.models.tiny import dialogues
from tests.data.test_chat_tokens import tokenizer
from tests.models.small_models import D_MODEL, gemma2, save_pair

FOLDER = Path(__file__).parents[2] / "examples" / "gemma_2_2b"
D_SAE, HOOK = 73_728, "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def recipe():
    spec = importlib.util.spec_from_file_location("published_latents", FOLDER / "published_latents.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def cfg(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipe")
    base, chat = save_pair(folder, gemma2)
    for model in (base, chat):
        tokenizer("gemma").save_pretrained(model)  # which reads any text
    torch.manual_seed(0)
    decoder = torch.randn(2, D_SAE, D_MODEL) * torch.rand(2, D_SAE, 1)
    tensors = {
        "encoder.weight": decoder.transpose(1, 2).contiguous(),
        "encoder.bias": torch.zeros(D_SAE),
        "decoder.weight": decoder,
        "decoder.bias": torch.zeros(2, D_MODEL),
        "k": torch.tensor(100, dtype=torch.int),
        "threshold": torch.tensor(20.0),
    }
    save_file(tensors, folder / "model.safetensors")
    lines = [json.dumps({"messages": messages}) for messages in dialogues(6, 0, "held_out")]
    (folder / "chats.jsonl").write_text("\n".join(lines) + "\n")
    return recipe.Config(
        conversations=folder / "chats.jsonl",
        source=str(folder),
        base=base,
        chat=chat,
        hook_name=HOOK,
        model_class_name="TransformerBridge",
        context_size=48,
        dtype="float32",
    )


@pytest.mark.filterwarnings("ignore:.*assumed.*")
def test_every_published_latent_is_measured_beside_the_papers_figure(recipe, cfg):
    table = recipe.compare(cfg)
    paper = pd.read_csv(FOLDER / "published_latents.csv").query("crosscoder == 'batchtopk'")
    assert table.index.tolist() == paper.latent.tolist()
    assert table.one_minus_delta_norm_paper.tolist() == paper.one_minus_delta_norm.tolist()
    crosscoder = slc.load(cfg.source, hook_name=HOOK, model_names=(cfg.base, cfg.chat))
    norms = crosscoder.decoder_norms[table.index.tolist()]
    expected = 0.5 - (norms[:, 1] - norms[:, 0]) / norms.amax(dim=-1) / 2
    torch.testing.assert_close(torch.tensor(table.one_minus_delta_norm.to_numpy()), expected, check_dtype=False)
    assert table.frac_template.between(0, 1).any()
    assert table.max_score.notna().tolist() == table.prompt.notna().tolist()


def test_a_name_that_nobody_published_is_refused_before_anything_is_loaded(recipe, cfg):
    with pytest.raises(ValueError, match="crosscoder='topk' is not one of batchtopk, l1"):
        recipe.compare(recipe.Config(conversations=cfg.conversations, crosscoder="topk"))
