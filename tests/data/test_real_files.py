"""Files as people have them: ShareGPT's form, empty conversations, unknown roles, empty and missing files."""

import gzip
import json
from itertools import islice
from pathlib import Path

import pytest
from datasets import Dataset

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.data.conversations import messages_of
from sae_lens_crosscoder.data.sources import load_rows, load_source
from sae_lens_crosscoder.models.tiny import tiny_tokenizer
from sae_lens_crosscoder.training.data.run_rows import RunRows
from tests.data.data_files import chat_file, documents, run_config, text_file, write_lines
from tests.reference import packing as reference

TOKENIZER = tiny_tokenizer()
SHAREGPT = {"user": "human", "assistant": "gpt"}


def rows_of(source, tokenizer=TOKENIZER, **fields):
    return RunRows(run_config(mix=slc.DataMix([source]), **fields), tokenizer=tokenizer)


def ids(rows):
    return [row["input_ids"] for row in rows]


def sharegpt_rows(folder, n=200, **roles):
    """The rows of `chat_file` as ShareGPT writes them."""
    rows = [json.loads(line)["messages"] for line in Path(chat_file(folder, n=n)).read_text().splitlines()]
    names = SHAREGPT | roles
    return [
        {"id": str(i), "conversations": [{"from": names[m["role"]], "value": m["content"]} for m in row]}
        for i, row in enumerate(rows)
    ]


def sharegpt_source(folder, rows, **fields):
    return slc.MixSource(write_lines(folder / "sharegpt.jsonl", rows), kind="conversations", name="share", **fields)


class Counting:
    """The tiny tokenizer, counting the documents that it tokenizes."""

    def __init__(self):
        self.n = 0

    def __call__(self, *args, **options):
        self.n += 1
        return TOKENIZER(*args, **options)

    def apply_chat_template(self, *args, **options):
        self.n += 1
        return TOKENIZER.apply_chat_template(*args, **options)

    def __getattr__(self, name):
        return getattr(TOKENIZER, name)


class TestShareGPT:
    @pytest.mark.parametrize("assistant", ["gpt", "chatgpt", "bing", "bard"])
    def test_it_is_read_without_being_told(self, tmp_path, assistant):
        usual = rows_of(slc.MixSource(chat_file(tmp_path), kind="conversations"))
        found = rows_of(sharegpt_source(tmp_path, sharegpt_rows(tmp_path, assistant=assistant)))
        assert ids(found.training) == ids(usual.training)
        assert ids(found.held_out) == ids(usual.held_out)

    def test_a_json_array_is_read_too(self, tmp_path):
        rows = sharegpt_rows(tmp_path)
        (tmp_path / "sharegpt.json").write_text(json.dumps(rows))
        found = rows_of(slc.MixSource(str(tmp_path / "sharegpt.json"), kind="conversations"))
        assert ids(found.training) == ids(rows_of(sharegpt_source(tmp_path, rows)).training)

    def test_a_systems_message_stays_one(self):
        conversation = [
            {"from": "system", "value": "a"},
            {"from": "human", "value": "b"},
            {"from": "gpt", "value": "c"},
        ]
        expected = [("system", "a"), ("user", "b"), ("assistant", "c")]
        messages = messages_of(conversation, slc.MixSource("x"))
        assert [(message["role"], message["content"]) for message in messages] == expected

    def test_keys_that_arrow_fills_with_none_are_not_the_messages(self):
        message = {"role": None, "content": None, "from": "human", "value": "a"}
        assert messages_of([message], slc.MixSource("x")) == [{"role": "user", "content": "a"}]


class TestRoles:
    def test_an_unknown_role_is_refused_by_name_before_training(self, tmp_path):
        rows = sharegpt_rows(tmp_path)
        rows[30]["conversations"][0]["from"] = "narrator"
        with pytest.raises(ValueError, match=r"'share', .* unknown role 'narrator'.* roles=\{'narrator': 'user'\}"):
            rows_of(sharegpt_source(tmp_path, rows))

    def test_a_mapped_role_is_the_role_it_is_mapped_to(self, tmp_path):
        rows = sharegpt_rows(tmp_path)
        expected = ids(rows_of(sharegpt_source(tmp_path, rows)).training)
        for row in rows:
            row["conversations"][0]["from"] = "narrator"
        source = sharegpt_source(tmp_path, rows, roles={"narrator": "user"})
        assert ids(rows_of(source).training) == expected

    def test_an_unknown_role_that_comes_late_is_left_out_and_named(self, tmp_path, caplog):
        rows = sharegpt_rows(tmp_path)
        without = ids(rows_of(sharegpt_source(tmp_path, rows[:170] + rows[171:])).training)
        rows[170]["conversations"][1]["from"] = "narrator"
        assert ids(rows_of(sharegpt_source(tmp_path, rows)).training) == without
        assert "Skipped a row: Source 'share', column 'conversations', has a message of the unknown role" in caplog.text

    def test_roles_of_the_usual_form_are_checked_as_well(self, tmp_path):
        rows = [{"messages": [{"role": "human being", "content": "the"}]}] * 40
        with pytest.raises(ValueError, match="unknown role 'human being'"):
            rows_of(slc.MixSource(write_lines(tmp_path / "a.jsonl", rows), kind="conversations"))


class TestEmptyConversations:
    @pytest.mark.parametrize("first", [0, 20])
    def test_they_are_left_out_counted_and_reported_once(self, tmp_path, caplog, first):
        rows = sharegpt_rows(tmp_path)
        blank = [{"from": "human", "value": " "}]
        without = ids(rows_of(sharegpt_source(tmp_path, rows), n_held_out_rows=10).training)
        with_empty = [
            *rows[:first],
            *[{"id": "", "conversations": c} for c in ([], blank, [], blank, [])],
            *rows[first:],
        ]
        n_held_out = 15 if first == 0 else 10
        found = rows_of(sharegpt_source(tmp_path, with_empty), n_held_out_rows=n_held_out)
        for _ in range(2):
            assert ids(found.training) == without
            list(found.held_out)
        n_rows = 195 if first else 15
        assert [r.message for r in caplog.records if "empty" in r.message] == [
            f"Source 'share': skipped 5 empty conversations of {n_rows}."
        ]

    def test_a_pass_that_training_leaves_early_reports_them(self, tmp_path, caplog):
        rows = sharegpt_rows(tmp_path)
        rows[50]["conversations"] = []
        contexts = iter(rows_of(sharegpt_source(tmp_path, rows)).training)
        list(islice(contexts, 170))
        assert "empty" not in caplog.text
        del contexts
        assert caplog.text.count("skipped 1 empty conversations") == 1


class TestPackedAsTheyAreRead:
    def test_the_first_context_waits_for_the_documents_that_fill_it_alone(self, tmp_path):
        chats = slc.MixSource(chat_file(tmp_path, n=1500), kind="conversations")
        for source in (slc.MixSource(text_file(tmp_path, n=1500)), chats):
            tokenizer = Counting()
            rows = rows_of(source, tokenizer)
            tokenizer.n = 0
            next(iter(rows.training))
            assert 1 <= tokenizer.n <= 16

    def test_no_token_between_documents_is_dropped(self, tmp_path):
        texts = documents(1500, seed=0)
        path = write_lines(tmp_path / "web.jsonl", [{"text": text} for text in texts])
        expected = [TOKENIZER(text, add_special_tokens=False)["input_ids"] for text in texts[8:]]
        bos = TOKENIZER.bos_token_id
        assert ids(rows_of(slc.MixSource(path)).training) == reference.concatenated(
            expected, 16, bos=bos, separator=bos
        )


class TestFiles:
    @pytest.mark.parametrize(
        "name", ["a.jsonl", "lines.jsonl", "b.json", "array.json", "c.parquet", "d.jsonl.gz", "e.txt"]
    )
    def test_an_empty_file_is_named(self, tmp_path, name):
        path = tmp_path / name
        path.write_text({"lines.jsonl": "\n\n", "array.json": "[]"}.get(name, ""))
        if name.endswith(".gz"):
            gzip.open(path, "w").close()
        with pytest.raises(ValueError, match=rf"Source 'the source': .*{name}' is empty"):
            load_source(slc.MixSource(str(path), name="the source"))

    def test_a_table_without_rows_is_empty(self, tmp_path):
        Dataset.from_dict({"text": []}).to_parquet(tmp_path / "a.parquet")
        with pytest.raises(ValueError, match="is empty"):
            load_source(slc.MixSource(str(tmp_path / "a.parquet")))

    def test_an_empty_file_among_others_is_passed_over(self, tmp_path):
        (tmp_path / "web-0.jsonl").touch()
        text_file(tmp_path, name="web-1.jsonl")
        rows = load_source(slc.MixSource(str(tmp_path / "web-*.jsonl")))
        assert len(list(rows)) == 200

    @pytest.mark.parametrize(
        "path",
        ["web.jsonl", "data/web.json.gz", "./web", "a/b.parquet", "~/chats", "my/own/chats", "my/chats.csv", "chats/"],
    )
    def test_a_missing_file_is_not_looked_for_on_the_hub(self, tmp_path, monkeypatch, path):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(
            "sae_lens_crosscoder.data.sources.load_dataset", lambda *a, **k: pytest.fail("asked the Hub")
        )
        with pytest.raises(ValueError, match=rf"no file matches '{path}'"):
            load_source(slc.MixSource(path))
        with pytest.raises(ValueError, match=rf"no file or folder at dataset_path='{path}'"):
            load_rows(path, streaming=True, n_tokens=1, n_held_out_rows=0, seed=0)
