"""The word-level tokenizer of the tiny pair, with a chat template."""

from typing import Final

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from sae_lens_crosscoder.models.tiny.vocabulary import (
    BOS,
    END_OF_TURN,
    MODEL,
    PAD,
    START_OF_TURN,
    TOKEN_IDS,
    USER,
)

CHAT_TEMPLATE: Final = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    f" {START_OF_TURN} {{{{ '{MODEL}' if message['role'] == 'assistant' else '{USER}' }}}}"
    f" {{{{ message['content'] }}}} {END_OF_TURN}"
    "{% endfor %}"
    f"{{% if add_generation_prompt %}} {START_OF_TURN} {MODEL}{{% endif %}}"
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token per word, separated by spaces, that adds `<bos>`.

    Text with a word outside `VOCABULARY` raises the tokenizers library's own exception, because an unknown-word token
    would reach the model as noise. The chat template writes the role `assistant` as `model`.

    >>> tiny_tokenizer().convert_ids_to_tokens(tiny_tokenizer()("paris is in france .")["input_ids"])
    ['<bos>', 'paris', 'is', 'in', 'france', '.']
    """
    backend = Tokenizer(models.WordLevel(TOKEN_IDS))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, TOKEN_IDS[BOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        name_or_path="tiny",
        bos_token=BOS,
        eos_token=END_OF_TURN,
        pad_token=PAD,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        # Without this, HookedTransformer.set_tokenizer reloads the tokenizer by name.
        add_bos_token=True,
    )
