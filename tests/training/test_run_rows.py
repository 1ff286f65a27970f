"""What a run reads: the mix that its config names, in the order and with the special tokens that it says."""

import dataclasses
import json
from itertools import islice
from pathlib import Path

import pytest
import torch
from datasets import Dataset

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.crosscoders.collectives import SINGLE_PROCESS, SingleProcess
from sae_lens_crosscoder.data.packing import Packing
from sae_lens_crosscoder.models.tiny import tiny_tokenizer
from sae_lens_crosscoder.training.data.run_rows import RunRows
from tests.data.data_files import (
    chat_file,
    documents,
    gemma_like_tokenizer,
    run_config,
    text_and_chat,
    text_file,
    write_lines,
)
from tests.reference import packing as reference

pytestmark = pytest.mark.usefixtures("types_unchecked_in_the_module")

TOKENIZER = tiny_tokenizer()
BOS, PAD = TOKENIZER.bos_token_id, TOKENIZER.pad_token_id


def rows_of(tokenizer=TOKENIZER, collectives=SINGLE_PROCESS, **fields):
    return RunRows(run_config(**fields), tokenizer=tokenizer, collectives=collectives)


class OneOfTwo(SingleProcess):
    n_data = 2

    def __init__(self, rank):
        self.rank = rank


def ids(rows):
    return [row["input_ids"] for row in rows]


def lines_of(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def words(texts):
    return [TOKENIZER(text, add_special_tokens=False)["input_ids"] for text in texts]


class TestShares:
    def test_sources_that_alternate_give_a_context_each_in_turn(self, tmp_path):
        rows = rows_of(mix=text_and_chat(tmp_path))
        for side in (rows.training, rows.held_out):
            sources = [row["source"] for row in side]
            assert sources == [("web", "chat")[i % 2] for i in range(len(sources))]

    def test_every_context_is_of_its_source_alone_and_as_that_source_gives_them(self, tmp_path):
        mix = text_and_chat(tmp_path)
        mixed = list(rows_of(mix=mix).training)
        for source in mix.sources:
            alone = ids(rows_of(mix=slc.DataMix([source])).training)
            ours = [row["input_ids"] for row in mixed if row["source"] == source.name]
            assert ours == alone[: len(ours)]
            assert len(ours) > 50

    def test_by_probability_the_weights_are_the_shares_and_the_order_is_the_seeds(self, tmp_path):
        mix = text_and_chat(tmp_path, rule="probability")
        mix.sources[0].weight = 3.0
        sources, again, other = (
            [row["source"] for row in islice(rows_of(mix=mix, seed=seed).training, 120)] for seed in (1, 1, 2)
        )
        assert sources == again != other
        assert sources.count("web") / len(sources) == pytest.approx(0.75, abs=0.12)  # three standard errors

    def test_rows_held_out_are_the_first_of_every_source_and_never_trained_on(self, tmp_path):
        texts = documents(60, seed=0)
        path = write_lines(tmp_path / "web.jsonl", [{"text": text} for text in texts])
        rows = rows_of(mix=slc.DataMix([slc.MixSource(path)]), n_held_out_rows=20)
        for side, part in ((rows.held_out, texts[:20]), (rows.training, texts[20:])):
            assert ids(side) == reference.concatenated(words(part), 16, bos=BOS, separator=BOS)

    def test_looking_at_held_out_rows_does_not_move_the_training_rows(self, tmp_path):
        for number in range(10):  # small files, because the place is kept by file
            text_file(tmp_path, n=20, seed=number, name=f"web-{number}.jsonl")
        mix = slc.DataMix([slc.MixSource(str(tmp_path / "web-*.jsonl"))])
        rows, again = rows_of(mix=mix), rows_of(mix=mix).training
        untouched = ids(rows.training)
        stream = iter(rows.training)
        first = ids(islice(stream, 50))
        list(rows.held_out)
        first += ids(islice(stream, 50))
        again.load_state_dict(rows.training.state_dict())
        assert first + ids(again) == first + ids(stream) == untouched


class TestPacking:
    @pytest.mark.parametrize(
        ("fields", "bos", "separator"),
        [
            ({}, BOS, BOS),
            ({"sequence_separator_token": None}, BOS, None),
            ({"sequence_separator_token": "eos"}, BOS, TOKENIZER.eos_token_id),
            ({"prepend_bos": False}, None, BOS),
            ({"prepend_bos": False, "sequence_separator_token": None}, None, None),
        ],
    )
    def test_bos_is_where_the_config_says_and_nowhere_else(self, tmp_path, fields, bos, separator):
        mix = text_and_chat(tmp_path)
        for source, texts in zip(mix.sources, (web_texts(), chat_texts()), strict=True):
            found = ids(rows_of(mix=slc.DataMix([source]), **fields).training)
            assert found == reference.concatenated(words(texts[8:]), 16, bos=bos, separator=separator)

    def test_one_document_has_a_context_to_itself_and_the_rest_of_it_is_padding(self, tmp_path):
        mix = text_and_chat(tmp_path)
        for source, texts in zip(mix.sources, (web_texts(), chat_texts()), strict=True):
            found = ids(rows_of(mix=slc.DataMix([source]), packing="one_document").training)
            assert found == reference.one_document(words(texts[8:]), 16, PAD, bos=BOS)

    def test_only_documents_that_fill_a_context_are_read_when_saelens_is_asked_for_that(self, tmp_path):
        found = ids(
            rows_of(mix=slc.DataMix([slc.MixSource(text_file(tmp_path))]), disable_concat_sequences=True).training
        )
        long = [document for document in words(web_texts()[8:]) if len(document) >= 15]
        assert found == [[BOS, *document][:16] for document in long]

    def test_the_same_documents_through_dataset_path_fill_the_same_contexts(self, tmp_path):
        mix = ids(rows_of(mix=slc.DataMix([slc.MixSource(text_file(tmp_path))])).training)
        Dataset.from_dict({"text": web_texts()}).save_to_disk(tmp_path / "saved")
        assert ids(rows_of(dataset_path=str(tmp_path / "saved")).training) == mix
        Dataset.from_list(lines_of(chat_file(tmp_path))).save_to_disk(tmp_path / "chats")
        chats = rows_of(dataset_path=str(tmp_path / "chats"), use_chat_formatting=True, is_dataset_tokenized=False)
        source = slc.MixSource(chat_file(tmp_path), kind="conversations")
        assert ids(chats.training) == ids(rows_of(mix=slc.DataMix([source])).training)


def web_texts():
    return documents(200, seed=0)


def chat_texts():
    said = documents(400, seed=1, longest=10)
    pairs = zip(said[::2], said[1::2], strict=True)
    return [f"<sot> user {a} <eot> <sot> model {b} <eot>" for a, b in pairs]


class TestSources:
    @pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".json", ".parquet", ".txt"])
    def test_files_of_every_kind_hold_the_same_text(self, tmp_path, suffix):
        texts = web_texts()
        path = tmp_path / f"web{suffix}"
        if suffix == ".parquet":
            Dataset.from_dict({"text": texts}).to_parquet(path)
        elif suffix == ".txt":
            path.write_text("\n".join(texts) + "\n")
        elif suffix == ".jsonl.gz":
            Dataset.from_dict({"text": texts}).to_json(path, compression="gzip")
        else:
            write_lines(path, [{"text": text} for text in texts])
        found = ids(rows_of(mix=slc.DataMix([slc.MixSource(str(path))])).training)
        assert found == reference.concatenated(words(texts[8:]), 16, bos=BOS, separator=BOS)

    def test_several_files_are_read_in_the_order_of_their_names(self, tmp_path):
        texts = web_texts()
        for number, start in enumerate(range(0, 200, 100)):
            write_lines(tmp_path / f"web-{number}.jsonl", [{"text": text} for text in texts[start : start + 100]])
        found = ids(rows_of(mix=slc.DataMix([slc.MixSource(str(tmp_path / "web-*.jsonl"))])).training)
        assert found == reference.concatenated(words(texts[8:]), 16, bos=BOS, separator=BOS)

    def test_messages_and_roles_go_by_the_names_that_the_dataset_has_for_them(self, tmp_path):
        usual = rows_of(mix=slc.DataMix([slc.MixSource(chat_file(tmp_path), kind="conversations")]))
        names = {"user": "human", "assistant": "gpt"}
        renamed = [
            [{"from": names[message["role"]], "value": message["content"]} for message in row["messages"]]
            for row in lines_of(chat_file(tmp_path))
        ]
        source = slc.MixSource(
            write_lines(tmp_path / "other.jsonl", [{"chat": row} for row in renamed]),
            kind="conversations",
            column="chat",
            role_key="from",
            content_key="value",
            roles={"human": "user", "gpt": "assistant"},
        )
        assert ids(rows_of(mix=slc.DataMix([source])).training) == ids(usual.training)

    def test_contexts_made_beforehand_are_read_as_they_are(self, tmp_path):
        contexts = torch.arange(20 * 18).view(20, 18).remainder(50).tolist()
        Dataset.from_dict({"ids": contexts}).save_to_disk(tmp_path / "saved")
        source = slc.MixSource(str(tmp_path / "saved"), kind="tokens", column="ids")
        rows = rows_of(mix=slc.DataMix([source]), tokenizer=None)
        assert ids(rows.held_out) + ids(rows.training) == [context[:16] for context in contexts]

    def test_a_conversation_that_the_template_refuses_is_left_out_and_said(self, tmp_path, caplog):
        rows = lines_of(chat_file(tmp_path))
        good = rows_of(mix=slc.DataMix([slc.MixSource(str(tmp_path / "chats.jsonl"), kind="conversations")]))
        rows.insert(50, {"messages": [{"role": "system", "content": "a"}, {"role": "user", "content": "a"}]})
        source = slc.MixSource(write_lines(tmp_path / "odd.jsonl", rows), kind="conversations", name="odd")
        found = rows_of(mix=slc.DataMix([source]), tokenizer=gemma_like_tokenizer())
        assert ids(found.training) == ids(good.training)
        assert "Skipped a row: Source 'odd'" in caplog.text
        assert "System role not supported" in caplog.text


def test_documents_without_tokens_are_no_contexts():
    empty, one = torch.tensor([], dtype=torch.long), torch.tensor([7])
    assert [c.tolist() for c in Packing(2, bos_id=1, padding_id=0).contexts([empty, one])] == [[1, 7]]
    assert [c.tolist() for c in Packing(2, bos_id=1).contexts([empty, one])] == [[1, 7]]


class TestProcesses:
    def test_every_document_is_read_by_one(self, tmp_path):
        for source in text_and_chat(tmp_path).sources:
            fields = dict(mix=slc.DataMix([source]), packing="one_document")
            alone = rows_of(**fields)
            shares = [rows_of(collectives=OneOfTwo(rank), **fields) for rank in range(2)]
            assert ids(shares[0].training) == ids(alone.training)[::2]
            assert ids(shares[1].training) == ids(alone.training)[1::2]
            assert ids(shares[1].held_out) == ids(alone.held_out)

    def test_each_has_the_sources_in_the_shares_of_the_mix(self, tmp_path):
        for rank in range(2):
            training = rows_of(mix=text_and_chat(tmp_path), collectives=OneOfTwo(rank)).training
            assert [row["source"] for row in islice(training, 6)] == ["web", "chat"] * 3

    def test_too_few_documents_for_all_are_refused(self, tmp_path):
        mix = slc.DataMix([slc.MixSource(text_file(tmp_path, n=9))])
        with pytest.raises(ValueError, match="rows for 2 processes"):
            rows_of(mix=mix, collectives=OneOfTwo(1))


class TestResuming:
    @pytest.mark.parametrize("rule", ["alternate", "probability"])
    @pytest.mark.parametrize("packing", ["concatenated", "one_document"])
    def test_rows_go_on_where_they_stopped(self, tmp_path, rule, packing):
        fields = dict(mix=text_and_chat(tmp_path, rule=rule), packing=packing)
        whole = ids(rows_of(**fields).training)
        for n_read in (1, 14, len(whole) - 1):
            first = rows_of(**fields).training
            start = ids(islice(iter(first), n_read))
            state = json.loads(json.dumps(first.state_dict()))
            second = rows_of(**fields).training
            second.load_state_dict(state)
            assert start + ids(second) == whole

    def test_little_is_tokenized_again(self, tmp_path):
        mix = slc.DataMix([slc.MixSource(text_file(tmp_path))])
        first = rows_of(mix=mix)
        n_contexts = len(list(first.training))
        next_ones = iter(first.training)
        list(islice(next_ones, n_contexts - 5))
        tokenized = []

        class Counting:
            def __call__(self, text, **options):
                tokenized.append(text)
                return TOKENIZER(text, **options)

            def __getattr__(self, name):
                return getattr(TOKENIZER, name)

        second = rows_of(mix=mix, tokenizer=Counting())
        second.training.load_state_dict(first.training.state_dict())
        tokenized.clear()
        assert ids(second.training) == ids(next_ones)
        assert 0 < len(tokenized) <= 30


class TestRefusals:
    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"path": "/nowhere/web.jsonl"}, "no file matches '/nowhere/web.jsonl'"),
            ({"path": "nowhere-*.txt"}, "no file matches 'nowhere-\\*.txt'"),
            ({"column": "body"}, r"'the source' has no column 'body', only \['id', 'text'\]"),
            ({"column": "id"}, "'the source', column 'id', contains 8, which is not text"),
            ({"kind": "conversations", "column": "id"}, "'the source', .* contains a conversation that .* refuses"),
            ({"kind": "tokens", "column": "text"}, "'the source', column 'text', contains"),
        ],
    )
    def test_what_a_source_lacks_is_named_before_a_model_is_loaded(self, tmp_path, monkeypatch, fields, message):
        def refuse(*args, **kwargs):
            raise AssertionError("a model was loaded")

        monkeypatch.setattr("sae_lens_crosscoder.models.pair.load_models", refuse)
        source = slc.MixSource(**({"path": text_file(tmp_path), "name": "the source"} | fields))
        with pytest.raises(ValueError, match=message):
            slc.CrosscoderTrainingRunner(run_config(mix=slc.DataMix([source])))

    def test_conversations_without_a_template_or_with_other_messages_are_refused(self, tmp_path):
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = None
        source = slc.MixSource(chat_file(tmp_path), kind="conversations", name="chat")
        with pytest.raises(ValueError, match=r"'chat' contains conversations, but .* has no chat template"):
            rows_of(mix=slc.DataMix([source]), tokenizer=tokenizer)
        source = dataclasses.replace(source, role_key="from")
        with pytest.raises(ValueError, match=r"messages have no \['from'\]: set role_key and content_key"):
            rows_of(mix=slc.DataMix([source]))

    def test_contexts_that_are_too_short_are_refused_or_padded(self, tmp_path):
        Dataset.from_dict({"input_ids": [[1, 2, 3]] * 20}).save_to_disk(tmp_path / "saved")
        mix = slc.DataMix([slc.MixSource(str(tmp_path / "saved"), kind="tokens", name="short")])
        with pytest.raises(ValueError, match=r"'short', .* a row of 3 tokens, fewer than context_size=16"):
            rows_of(mix=mix)
        assert ids(rows_of(mix=mix, packing="one_document").training) == [[1, 2, 3, *[PAD] * 13]] * 12

    def test_held_out_documents_that_fill_no_context_are_refused(self, tmp_path):
        path = write_lines(tmp_path / "short.jsonl", [{"text": "the"}] * 30)
        with pytest.raises(ValueError, match=r"n_held_out_rows=2 documents .* do not fill one context of 16"):
            rows_of(mix=slc.DataMix([slc.MixSource(path)]), n_held_out_rows=2)

    @pytest.mark.parametrize(
        ("missing", "fields", "message"),
        [
            ("bos_token", {}, "prepend_bos needs a bos token, .* pass prepend_bos=False"),
            ("bos_token", {"prepend_bos": False}, "sequence_separator_token needs a bos token"),
            (
                "pad_token",
                {"packing": "one_document"},
                "that no document contains, got None",
            ),
        ],
    )
    def test_a_special_token_that_the_tokenizer_lacks_is_refused(self, tmp_path, missing, fields, message):
        tokenizer = tiny_tokenizer()
        setattr(tokenizer, missing, None)
        with pytest.raises(ValueError, match=message):
            rows_of(mix=slc.DataMix([slc.MixSource(text_file(tmp_path))]), tokenizer=tokenizer, **fields)

    def test_padding_that_ends_documents_is_refused_and_a_given_id_is_used(self, tmp_path):
        tokenizer = tiny_tokenizer()
        tokenizer.pad_token = tokenizer.eos_token
        fields = dict(mix=slc.DataMix([slc.MixSource(text_file(tmp_path))]), packing="one_document")
        with pytest.raises(ValueError, match="Set padding_token to an unused id"):
            rows_of(tokenizer=tokenizer, **fields)
        given = ids(rows_of(tokenizer=tokenizer, padding_token=77, **fields).training)
        assert {context[-1] for context in given if len(context) < 10} <= {77}
        assert any(context[-1] == 77 for context in given)


def changed(config, **fields):
    """With values that type checks would refuse before the config does."""
    for name, value in fields.items():
        setattr(config, name, value)
    config.__post_init__()


class TestConfig:
    @pytest.mark.parametrize(
        ("build", "message"),
        [
            (lambda: slc.MixSource(""), "has no path"),
            (lambda: changed(slc.MixSource("x"), kind="chats"), "kind='chats' is not one of"),
            (lambda: slc.MixSource("x", weight=0.0), "weight=0.0 must be positive"),
            (lambda: slc.DataMix([]), "has no sources"),
            (lambda: changed(slc.DataMix([slc.MixSource("x")]), rule="random"), "rule='random'"),
            (lambda: slc.DataMix([slc.MixSource("x")] * 2), r"\['x', 'x'\] contain duplicates"),
            (
                lambda: slc.DataMix([slc.MixSource("x"), slc.MixSource("y", weight=2.0)]),
                "needs equal weights",
            ),
            (lambda: run_config(mix={"sources": [{"path": "x", "colum": "y"}]}), "Did you mean 'column'"),
            (lambda: run_config(mix='{"sources": '), "The mix is not valid JSON"),
            (lambda: run_config(mix='{"sources": ["web.jsonl"]}'), "invalid mix .* expected an object with a list of"),
            (lambda: run_config(mix={"sources": [{"kind": "text"}]}), "has no path"),
            (lambda: run_config(mix=slc.DataMix([slc.MixSource("x")]), dataset_path="y"), "not both"),
            (
                lambda: run_config(
                    mix=slc.DataMix([slc.MixSource("x")]), use_chat_formatting=True, is_dataset_tokenized=False
                ),
                "In a mix, kind='conversations' makes a source's rows",
            ),
            (lambda: changed(run_config(), packing="padded"), "packing='padded' is not one of"),
            (lambda: run_config(packing="one_document", disable_concat_sequences=True), "use one"),
        ],
    )
    def test_what_contradicts_itself_is_refused_at_once(self, build, message):
        with pytest.raises(ValueError, match=message):
            build()

    def test_a_written_config_reads_the_same_rows_again(self, tmp_path):
        mix = text_and_chat(tmp_path, rule="probability")
        cfg = run_config(mix=mix, packing="one_document", padding_token=0, token_replacements={"a": "b"})
        again = slc.CrosscoderRunnerConfig.from_dict(json.loads(json.dumps(cfg.to_dict())))
        assert (again.mix, again.packing, again.padding_token) == (mix, "one_document", 0)
        assert again.token_replacements == {"a": "b"}
        assert ids(RunRows(again).training) == ids(RunRows(cfg).training)
        (tmp_path / "mix.json").write_text(json.dumps(dataclasses.asdict(mix)))
        assert run_config(mix=str(tmp_path / "mix.json")).mix == mix
