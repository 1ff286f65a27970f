"""Small files of text and conversations in the tiny pair's words, and a config that reads them."""

import json
from random import Random

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.models.tiny import TINY_HOOK, tiny_tokenizer
from sae_lens_crosscoder.models.tiny.vocabulary import VOCABULARY

WORDS = [word for word in VOCABULARY if not word.startswith("<")]
N_DOCUMENTS = 200
GEMMA_LIKE_TEMPLATE = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
    " <sot> {{ 'model' if message['role'] == 'assistant' else 'user' }}"
    " {{ message['content'] | trim }} <eot>"
    "{% endfor %}"
)


def gemma_like_tokenizer():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = GEMMA_LIKE_TEMPLATE
    return tokenizer


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def documents(n, seed, longest=30):
    """Texts of 1 to `longest` words."""
    random = Random(seed)
    return [" ".join(random.choices(WORDS, k=random.randint(1, longest))) for _ in range(n)]


def text_file(folder, n=N_DOCUMENTS, seed=0, name="web.jsonl"):
    return write_lines(folder / name, [{"id": i, "text": text} for i, text in enumerate(documents(n, seed))])


def chat_file(folder, n=N_DOCUMENTS, seed=1, name="chats.jsonl"):
    said = documents(2 * n, seed, longest=10)
    pairs = zip(said[::2], said[1::2], strict=True)
    rows = [[{"role": "user", "content": a}, {"role": "assistant", "content": b}] for a, b in pairs]
    return write_lines(folder / name, [{"messages": row} for row in rows])


def text_and_chat(folder, **fields):
    web = slc.MixSource(text_file(folder), name="web")
    chat = slc.MixSource(chat_file(folder), kind="conversations", name="chat")
    return slc.DataMix([web, chat], **fields)


def run_config(**fields):
    defaults = dict(
        sae=slc.BatchTopKCrosscoderTrainingConfig(d_model=96, d_sae=64, k=4),
        model_name="tiny-base",
        chat_model_name="tiny-chat",
        hook_name=TINY_HOOK,
        context_size=16,
        training_tokens=8 * 128,
        train_batch_size_tokens=128,
        store_batch_size_prompts=4,
        n_held_out_rows=8,
        lr_warm_up_steps=2,
        checkpoint_path=None,
        output_path=None,
    )
    return slc.CrosscoderRunnerConfig(**(defaults | fields))
