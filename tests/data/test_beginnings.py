"""BOS that is also a turn marker, as in ChatML, is BOS where a row begins and nowhere else; no chat has it twice."""

import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.data.beginnings import bos_marks_turns, document_start_id, is_bos
from sae_lens_crosscoder.data.token_groups import packed_token_groups
from sae_lens_crosscoder.models.tiny import tiny_tokenizer
from sae_lens_crosscoder.models.tiny.vocabulary import END_OF_TURN, MODEL, START_OF_TURN, USER
from sae_lens_crosscoder.training.data.run_rows import RunRows
from tests.data.data_files import chat_file, run_config

TURN_TEMPLATE = (
    "{% for m in messages %}"
    f"{START_OF_TURN} {{{{ '{MODEL}' if m['role'] == 'assistant' else '{USER}' }}}} "
    f"{{{{ m['content'] }}}} {END_OF_TURN} "
    "{% endfor %}"
    f"{{% if add_generation_prompt %}}{START_OF_TURN} {MODEL}{{% endif %}}"
)


def chatml():
    """The tiny tokenizer with a template like ChatML's: BOS is the turn marker."""
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = START_OF_TURN
    tokenizer.chat_template = TURN_TEMPLATE
    return tokenizer


MARKER = chatml().bos_token_id


def test_the_template_tells_a_turn_marker_from_a_beginning():
    assert bos_marks_turns(chatml())
    assert not bos_marks_turns(tiny_tokenizer())
    assert document_start_id(chatml()) is None
    assert document_start_id(tiny_tokenizer()) == tiny_tokenizer().bos_token_id
    tokens = torch.tensor([[MARKER, 5, MARKER], [5, MARKER, 6]])
    assert is_bos(tokens, chatml()).tolist() == [[True, False, False], [False, False, False]]
    bos = tiny_tokenizer().bos_token_id
    assert is_bos(torch.tensor([5, bos]), tiny_tokenizer()).tolist() == [False, True]


@pytest.mark.parametrize("packing", ["concatenated", "one_document"])
@pytest.mark.parametrize("prepend_bos", [True, False])
@pytest.mark.parametrize("separator", ["bos", "eos", None])
def test_a_packed_chat_keeps_every_turn_marker_and_gets_no_second_one(tmp_path, packing, prepend_bos, separator):
    path = chat_file(tmp_path, 30)
    cfg = run_config(
        mix=slc.DataMix([slc.MixSource(path, kind="conversations")]),
        packing=packing,
        prepend_bos=prepend_bos,
        sequence_separator_token=separator,
    )
    tokenizer = chatml()
    user = tokenizer(USER, add_special_tokens=False)["input_ids"][0]
    n_turns = 0
    for row in RunRows(cfg, tokenizer=tokenizer).training:
        ids = row["input_ids"]
        assert (MARKER, MARKER) not in list(zip(ids, ids[1:], strict=False))
        for i, token in enumerate(ids):
            if token == user and i > 0:  # every turn still begins with its marker
                n_turns += 1
                assert ids[i - 1] == MARKER
    assert n_turns > 10


def test_groups_call_it_bos_at_the_start_of_a_row_only():
    tokenizer = chatml()
    messages = [{"role": "user", "content": "paris"}, {"role": "assistant", "content": "france"}]
    chat = slc.data.chat_tokens(tokenizer, messages)
    assert chat.bos.nonzero().flatten().tolist() == [0]
    assert (chat.input_ids == MARKER).sum() == 2
    packed = packed_token_groups(torch.cat([chat.input_ids, chat.input_ids])[None], tokenizer)
    names = [packed.names[label] for label in packed.labels[0]]
    turn = ["template", "template", "user", "template", "template", "template", "assistant", "template"]
    assert names == ["bos", *turn[1:], *turn]
    rows = slc.data.labelled_rows(tokenizer, [messages], ["paris is in france ."])
    assert [rows.groups.names[label] for label in rows.groups.labels[0]] == ["bos", *turn[1:]]
