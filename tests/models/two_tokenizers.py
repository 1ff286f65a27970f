"""Two tokenizers of one text, trained here, and small models that read it with them."""

import random
from functools import cache

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tests.models.small_models import random_hooked_transformer

_ENGLISH = "the quick brown foxes jumped over lazy dogs and another unhappiness returned with flowers"
WORDS = [*_ENGLISH.split(), "für", "😀", "naïveté"]
TEMPLATE = "{{ bos_token }}{% for m in messages %}<turn>{{ m['role'] }} {{ m['content'] }}<end>{% endfor %}"


def texts(n=40, seed=0, n_words=12):
    generator = random.Random(seed)
    return [" ".join(generator.choices(WORDS, k=n_words)) + ".\n" for _ in range(n)]


@cache
def byte_level(size=300):
    """As GPT-2's: bytes, one special token; spaces begin words."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"], show_progress=False
    )
    backend.train_from_iterator(texts(), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")


@cache
def sentence_piece(size=90):
    """As Llama's: spaces are marks, bytes stand for unknown characters; BOS, padding, and turns of a chat."""
    backend = Tokenizer(models.BPE(byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(parts)
    special = ["<pad>", "<bos>", "<eos>", "<turn>", "<end>", *(f"<0x{i:02X}>" for i in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=special[:5], show_progress=False)
    backend.train_from_iterator(texts(20, n_words=8), trainer)
    backend.add_tokens(special[5:])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        additional_special_tokens=["<turn>", "<end>"],
        chat_template=TEMPLATE,
    )


def model_of(tokenizer, d_model=16, seed=1, n_layers=2):
    model = random_hooked_transformer(d_model, seed, d_vocab=len(tokenizer), n_layers=n_layers)
    model.tokenizer = tokenizer
    return model


def rows_of(tokenizer, some_texts, n_pos=24):
    """Texts as rows of ids, BOS first if there is one, cut or padded to one length."""
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    ids = [(bos + tokenizer(text, add_special_tokens=False)["input_ids"])[:n_pos] for text in some_texts]
    return torch.tensor([row + [padding] * (n_pos - len(row)) for row in ids])
