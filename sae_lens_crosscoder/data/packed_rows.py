# pyright: reportPrivateUsage=false
"""Rows of a source as contexts of token ids, tokenized and packed one document at a time while they are read."""

import dataclasses
import logging
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from datasets import DatasetInfo, Features, IterableDataset, List, Value
from datasets.iterable_dataset import _BaseExamplesIterable
from jaxtyping import Int
from sae_lens.tokenization_and_batching import tokenize_with_chat_template
from torch import Tensor
from torch.nn.functional import pad
from typing_extensions import override

from sae_lens_crosscoder.data.beginnings import document_start_id
from sae_lens_crosscoder.data.conversations import COLUMNS, UnknownRoleError, is_empty, messages_of
from sae_lens_crosscoder.data.mix import MixSource
from sae_lens_crosscoder.data.packing import Packing

# Rows whose roles are checked before anything is trained; later rows with an unknown role are skipped.
_N_CHECKED_ROWS = 100
# Where rows of the kind `answers` have their documents, each a list of ids.
ANSWERS_COLUMN = "answers"
_FEATURES = Features({"input_ids": List(Value("int64")), "source": Value("string")})
_log = logging.getLogger(__name__)


def pack_rows(rows: IterableDataset, source: MixSource, packing: Packing, tokenizer: Any) -> IterableDataset:
    """Rows with `input_ids`, one context each, and the name of their `source`; packed as they are read.

    BOS stands only where the packing puts it: the tokenizer adds none, and a template's own is removed, unless it is
    also the turn marker, which the packing does not double. A conversation that the template refuses is skipped with a
    warning; empty ones are skipped, and one warning counts them.

    Raises:
        ValueError: if the first row lacks the source's column or cannot be tokenized, or one of the first hundred
            conversations has an unknown role.
    """
    first = list(islice(rows, _N_CHECKED_ROWS if source.kind == "conversations" else 1))
    if not first:
        raise ValueError(f"Source {source.name!r} has no rows. Check its path and n_held_out_rows.")
    source = dataclasses.replace(source, column=_column(source, first[0]))
    tokenize = _Tokenize(source, packing, tokenizer)
    tokenize.validate(first)
    examples: Any = rows.select_columns([source.column])._ex_iterable
    return IterableDataset(_PackedExamples(examples, tokenize), info=DatasetInfo(features=_FEATURES))


def _column(source: MixSource, row: dict[str, Any]) -> str:
    if source.kind == "answers":
        return ANSWERS_COLUMN
    column = source.column or next((name for name in COLUMNS if name in row), COLUMNS[0])
    if column not in row:
        raise ValueError(
            f"Source {source.name!r} has no column {column!r}, only {sorted(row)}. Set `column` to the one "
            f"with its {source.kind}."
        )
    return column


class _PackedExamples(_BaseExamplesIterable):
    """The contexts of a source, one after another, as `datasets` iterates and resumes.

    `IterableDataset.map` has no place for the tokens that do not fill a context yet: it would have to read a thousand
    documents at once, before the first context, and drop the tokens at the end.
    """

    def __init__(self, examples: Any, tokenize: "_Tokenize") -> None:
        super().__init__()
        self.ex_iterable, self.tokenize = examples, tokenize

    @property
    @override
    def is_typed(self) -> bool:
        return True

    @property
    @override
    def features(self) -> Features:
        return _FEATURES

    @property
    @override
    def num_shards(self) -> int:
        return self.ex_iterable.num_shards

    @override
    def _init_state_dict(self) -> dict[str, Any]:
        self.ex_iterable._init_state_dict()
        # The place before the document that the next context comes from, and what was left of earlier documents.
        self._state_dict = {"document": None, "unfinished": None, "n_contexts": 0}
        return self._state_dict

    @override
    def __iter__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        state, unfinished, n_read = self._state_dict, [], 0
        if isinstance(state, dict) and state["document"] is not None:
            self.ex_iterable.load_state_dict(state["document"])
            unfinished, n_read = state["unfinished"], state["n_contexts"]
        state = state if isinstance(state, dict) else {}
        place = self.ex_iterable.state_dict() if state else None
        n_rows = n_empty = 0
        try:
            for key, example in self.ex_iterable:
                n_rows += 1
                n_empty += self.tokenize.is_empty(example)
                contexts, following = self.tokenize.contexts(unfinished, example)
                for n, context in enumerate(contexts[n_read:], start=n_read + 1):
                    state.update(document=place, unfinished=unfinished, n_contexts=n)
                    yield f"{key}_{n}", {"input_ids": context.tolist(), "source": self.tokenize.source.name}
                unfinished, n_read = following, 0
                place = self.ex_iterable.state_dict() if state else None
        except GeneratorExit:
            if n_rows > _N_CHECKED_ROWS:  # otherwise a look at the first context
                self.tokenize.report_empty(n_empty, n_rows)
            raise
        self.tokenize.report_empty(n_empty, n_rows)


class _Tokenize:
    """Tokenizes and packs the rows of one source."""

    def __init__(self, source: MixSource, packing: Packing, tokenizer: Any) -> None:
        self.source, self.packing, self.tokenizer = source, packing, tokenizer
        self._reported = False
        self._bos_id = document_start_id(tokenizer)
        if source.kind == "conversations" and getattr(tokenizer, "chat_template", None) is None:
            raise ValueError(
                f"Source {source.name!r} contains conversations, but the chat model's tokenizer has no chat template. "
                "Use a chat model that has one."
            )

    def validate(self, rows: list[dict[str, Any]]) -> None:
        """Raise a ValueError if the first row with content cannot be tokenized, or a row has an unknown role."""
        values = [row[self.source.column] for row in rows if not self.is_empty(row)]
        for value in values[:1]:
            self._documents(value)
        for value in values[1:]:
            try:
                messages_of(value, self.source)
            except UnknownRoleError as error:
                raise self._error(str(error)) from error
            except (ValueError, TypeError):
                continue  # this row alone is skipped, with a warning

    def contexts(self, unfinished: list[int], row: dict[str, Any]) -> tuple[list[Int[Tensor, "_"]], list[int]]:
        """The contexts that a row completes, and the tokens that do not fill one; see `Packing.add`."""
        value = row[self.source.column]
        if self.is_empty(row):
            return [], unfinished
        if self.source.kind == "tokens":
            return [self(value)], []
        try:
            documents = self._documents(value)
        except ValueError as error:
            _log.warning("Skipped a row: %s", error)
            return [], unfinished
        contexts: list[Tensor] = []
        for document in documents:
            completed, unfinished = self.packing.add(unfinished, document)
            contexts += completed
        return contexts, unfinished

    def is_empty(self, row: dict[str, Any]) -> bool:
        """True for a row whose conversation has no words; it is skipped."""
        return self.source.kind == "conversations" and is_empty(row[self.source.column], self.source)

    def report_empty(self, n_empty: int, n_rows: int) -> None:
        """Log the number of empty conversations, the first time that it is not 0."""
        if n_empty and not self._reported:
            self._reported = True
            _log.warning("Source %r: skipped %d empty conversations of %d.", self.source.name, n_empty, n_rows)

    def _documents(self, value: Any) -> list[Int[Tensor, "_"]]:
        return [self(each) for each in value] if self.source.kind == "answers" else [self(value)]

    def __call__(self, value: Any) -> Int[Tensor, " pos"]:
        """The token ids of one document, without BOS; a ValueError for a value that does not fit the source's kind.

        BOS that the template also writes within conversations is its turn marker, and stays.
        """
        if self.source.kind == "tokens":
            return self._context(value)
        if self.source.kind == "text":
            if not isinstance(value, str):
                raise self._error(f"contains {value!r:.60}, which is not text")
            ids = torch.tensor(self.tokenizer(value, add_special_tokens=False)["input_ids"], dtype=torch.long)
        elif self.source.kind == "answers":
            ids = torch.tensor(value, dtype=torch.long)
        else:
            ids = self._rendered(value)
        has_bos = len(ids) > 0 and int(ids[0]) == self._bos_id
        return ids[1:] if has_bos else ids

    def _rendered(self, value: Any) -> Int[Tensor, " pos"]:
        try:
            return tokenize_with_chat_template(messages_of(value, self.source), self.tokenizer)
        except UnknownRoleError as error:
            raise self._error(str(error)) from error
        except Exception as error:  # a template may raise any exception
            raise self._error(f"contains a conversation that the chat template refuses ({error})") from error

    def _context(self, value: Any) -> Int[Tensor, " pos"]:
        """A context of ids made beforehand, truncated or padded to the context size."""
        size, padding = self.packing.context_size, self.packing.padding_id
        try:
            context = torch.as_tensor(value, dtype=torch.long)[:size]
        except (TypeError, ValueError, RuntimeError) as error:
            raise self._error(f"contains {value!r:.60}, which are not token ids") from error
        if len(context) < size and padding is not None:
            return pad(context, (0, size - len(context)), value=padding)
        if len(context) < size:
            raise self._error(f"has a row of {len(context)} tokens, fewer than context_size={size}")
        return context

    def _error(self, problem: str) -> ValueError:
        return ValueError(f"Source {self.source.name!r}, column {self.source.column!r}, {problem}.")
