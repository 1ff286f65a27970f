"""A crosscoder whose latents are known, and a model that explains and judges by knowing them too.

The residual stream holds one coordinate per word, so that a latent can be planted on the words of a category.
"""

import re
from types import SimpleNamespace

import pytest
import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.models.tiny import tiny_tokenizer
from sae_lens_crosscoder.models.tiny.vocabulary import BOS, ITEMS_OF, TEMPLATE_TOKENS, TOKEN_IDS, VOCABULARY
from tests.analysis.conftest import relu_crosscoder

HOOK = "blocks.0.hook_resid_pre"
WINDOW = (6, 3)
RULES = {name: set(words) for name, words in ITEMS_OF.items()}
PLANTED = range(len(RULES))
DEAD, EVERYWHERE = len(RULES), len(RULES) + 1
EVERY_TOKEN = "every token"


def rule_model(prompt):
    """Explains marked words by the category that they are all of, and judges by the category it is told."""
    asked = prompt[-1]["content"]
    if "From the strongest third:" in asked:
        marked = marked_words(asked.split("From the strongest third:")[1])
        names = [name for name, words in RULES.items() if marked <= words]
        return f"They share a topic.\nEXPLANATION: {(names or [EVERY_TOKEN])[0]}"
    rule = RULES.get(re.search(r"The latent is active on: (.*)", asked)[1], set())
    texts = re.findall(r"^\d+\. (.*)$", asked, flags=re.M)
    if any("«" in text for text in texts):
        verdicts = [marked_words(text) <= rule for text in texts]
    else:
        verdicts = [bool(set(text.split()) & rule) for text in texts]
    return f"I looked at every text.\n{[int(verdict) for verdict in verdicts]}"


def marked_words(text):
    return {word.strip() for word in re.findall(r"«([^»]*)»", text)}


def one_hot_pair():
    d_vocab = len(VOCABULARY)
    config = HookedTransformerConfig(
        n_layers=1, d_model=d_vocab, n_heads=1, d_head=4, d_mlp=4, n_ctx=32, d_vocab=d_vocab, act_fn="relu", seed=0
    )
    model = HookedTransformer(config, tokenizer=tiny_tokenizer()).eval()
    with torch.no_grad():
        model.W_E.copy_(torch.eye(d_vocab))
        model.W_pos.zero_()
    return slc.HookedModelPair(model, model)


def planted_crosscoder():
    d_vocab = len(VOCABULARY)
    W_enc = torch.zeros(d_vocab, len(RULES) + 2)
    for latent, words in enumerate(ITEMS_OF.values()):
        for rank, word in enumerate(words):
            W_enc[TOKEN_IDS[word], latent] = 1 + rank / len(words)  # so that every one is more than half of the peak
    W_enc[:, EVERYWHERE] = 1
    W_enc = torch.cat([W_enc, W_enc]) / 2
    crosscoder = relu_crosscoder(W_enc.T, W_enc=W_enc, d_models=(d_vocab, d_vocab))
    crosscoder.cfg.metadata.hook_name = HOOK
    return crosscoder


def random_texts(n_prompts=240, n_pos=32, seed=0):
    words = torch.tensor([id for word, id in TOKEN_IDS.items() if word not in TEMPLATE_TOKENS])
    drawn = torch.randint(len(words), (n_prompts, n_pos), generator=torch.Generator().manual_seed(seed))
    tokens = words[drawn]
    tokens[:, 0] = TOKEN_IDS[BOS]
    return tokens


@pytest.fixture(scope="session")
def planted(tmp_path_factory):
    """Crosscoder, pair, texts, and the examples in them."""
    crosscoder, pair, tokens = planted_crosscoder(), one_hot_pair(), random_texts()
    path = tmp_path_factory.mktemp("planted") / "examples.safetensors"
    sizes = dict(n_top=20, n_quantiles=5, n_per_quantile=24, window=WINDOW)
    examples = slc.analysis.collect_examples(crosscoder, slc.EvalData(pair=pair, tokens=tokens), path, **sizes)
    return SimpleNamespace(crosscoder=crosscoder, pair=pair, tokens=tokens, examples=examples)


def make_cases(planted, latents=tuple(PLANTED), **kwargs):
    options = {"n_scored": 20, "n_windows": 1000, **kwargs}
    embed = options.pop("embed", slc.interpretation.sentence_embedder("words"))
    data = slc.EvalData(pair=planted.pair, tokens=planted.tokens, batch_size=options.pop("batch_size", 32))
    return slc.interpretation.interpretation_cases(
        planted.crosscoder, data, planted.examples, latents, embed, **options
    )


@pytest.fixture(scope="session")
def cases(planted):
    return make_cases(planted)


@pytest.fixture(scope="session")
def cases_of_another_seed(planted):
    return make_cases(planted, seed=1)
