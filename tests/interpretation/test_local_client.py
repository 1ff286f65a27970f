"""A model on this machine answers as it would by hand, one token after the other, whatever is in the batch."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sae_lens_crosscoder.interpretation import LocalClient

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)
PROMPTS = [({"role": "user", "content": text},) for text in ("hi", "what is «this», then?", "x", "né\nnon", "hi you")]
N_NEW = 6


def byte_tokenizer(template):
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: n for n, letter in enumerate([*letters, "<end>"])}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", chat_template=template)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("llama")
    shape = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    config = LlamaConfig(
        **shape, num_key_value_heads=2, vocab_size=257, max_position_embeddings=256, eos_token_id=256, bos_token_id=None
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = LlamaForCausalLM(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(8)  # so that answers depend on the prompt
    model.save_pretrained(path)
    byte_tokenizer(TEMPLATE).save_pretrained(path)
    return path


def by_hand(folder, prompt):
    """Greedy, without a cache or a batch."""
    model, tokenizer = LlamaForCausalLM.from_pretrained(folder).eval(), byte_tokenizer(TEMPLATE)
    ids = tokenizer(f"<user>{prompt[0]['content']}<a>")["input_ids"]
    written = []
    while len(written) < N_NEW and 256 not in written:
        with torch.no_grad():
            written.append(int(model(torch.tensor([ids + written])).logits[0, -1].argmax()))
    return tokenizer.decode([id for id in written if id != 256])


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_answers_are_the_most_likely_ones_by_hand(folder, batch_size):
    client = LocalClient(str(folder), settings={"max_new_tokens": N_NEW}, batch_size=batch_size)
    got = dict(client.answers(PROMPTS))
    expected = [by_hand(folder, prompt) for prompt in PROMPTS]
    assert [got[n] for n in range(len(PROMPTS))] == expected
    assert len(set(expected)) > 2


def test_settings_and_precision_are_part_of_the_question(folder):
    clients = [LocalClient(str(folder), dtype=dtype) for dtype in ("float32", "bfloat16")]
    assert [client.settings for client in clients] == [
        {"max_new_tokens": 1000, "dtype": dtype} for dtype in ("float32", "bfloat16")
    ]
    assert clients[0].model == str(folder)


def test_a_tokenizer_without_a_chat_template_is_refused(folder, tmp_path):
    byte_tokenizer(None).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no chat template: use an instruction-tuned model"):
        LocalClient(str(tmp_path))
