"""Packing: documents tokenized and cut into contexts of equal size."""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from datasets import Features, IterableDataset, List, Value
from jaxtyping import Int
from sae_lens.tokenization_and_batching import concat_and_batch_sequences, tokenize_with_chat_template
from torch import Tensor
from torch.nn.functional import pad

from sae_lens_crosscoder.data.mix import MixSource

PackingRule = Literal["concatenated", "one_document"]
# Documents that are packed together; tokens that do not fill their last context are dropped, as in SAELens.
_DOCUMENTS_AT_ONCE = 1000
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Packing:
    """A rule for filling contexts with documents, in ids of one tokenizer."""

    context_size: int
    bos_id: int | None = None
    """First token of every context; None for no such token."""
    separator_id: int | None = None
    """Token between two documents of a context; None for no such token."""
    padding_id: int | None = None
    """Token that fills a context after its only document; None to pack several documents into a context."""
    only_long_documents: bool = False
    """True to give each document that fills a context its own, and to drop shorter documents."""

    def contexts(self, documents: Iterable[Int[Tensor, "_"]]) -> Iterator[Int[Tensor, "_"]]:
        """Contexts of `context_size` tokens; drops the last tokens that do not fill one.

        >>> documents = [torch.tensor([5, 6, 7]), torch.tensor([8])]
        >>> [context.tolist() for context in Packing(3, bos_id=1, separator_id=1).contexts(documents)]
        [[1, 5, 6], [1, 7, 1]]
        >>> [context.tolist() for context in Packing(3, bos_id=1, padding_id=0).contexts(documents)]
        [[1, 5, 6], [1, 8, 0]]
        """
        if self.padding_id is None:
            yield from concat_and_batch_sequences(
                iter(documents),
                self.context_size,
                begin_batch_token_id=self.bos_id,
                sequence_separator_token_id=self.separator_id,
                disable_concat_sequences=self.only_long_documents,
            )
            return
        first = torch.tensor([] if self.bos_id is None else [self.bos_id], dtype=torch.long)
        for document in documents:
            if len(document) > 0:
                context = torch.cat([first, document])[: self.context_size]
                yield pad(context, (0, self.context_size - len(context)), value=self.padding_id)


def pack_rows(rows: IterableDataset, source: MixSource, packing: Packing, tokenizer: Any) -> IterableDataset:
    """Rows with `input_ids`, one context each, and the name of their `source`; packed as they are read.

    BOS stands only where the packing puts it: the tokenizer adds none, and a template's own is removed. A conversation
    that the template refuses is skipped with a warning.

    Raises:
        ValueError: if the first row lacks the source's column or cannot be tokenized.
    """
    first = next(iter(rows))
    if source.column not in first:
        raise ValueError(
            f"Source {source.name!r} has no column {source.column!r}, only {sorted(first)}. Set `column` to the one "
            f"with its {source.kind}."
        )
    packer = _Packer(source, packing, tokenizer)
    packer.tokenize(first[source.column])
    features = Features({"input_ids": List(Value("int64")), "source": Value("string")})
    return rows.select_columns([source.column]).map(
        packer,
        batched=True,
        batch_size=_DOCUMENTS_AT_ONCE,
        remove_columns=[source.column],
        features=features,
    )


class _Packer:
    """Tokenizes and packs the rows of one source, a batch at a time."""

    def __init__(self, source: MixSource, packing: Packing, tokenizer: Any) -> None:
        self.source, self.packing, self.tokenizer = source, packing, tokenizer
        if source.kind == "conversations" and getattr(tokenizer, "chat_template", None) is None:
            raise ValueError(
                f"Source {source.name!r} contains conversations, but the chat model's tokenizer has no chat template. "
                "Use a chat model that has one."
            )

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        values = batch[self.source.column]
        if self.source.kind == "tokens":
            contexts = [self.tokenize(value) for value in values]
        else:
            contexts = list(self.packing.contexts(self._valid_documents(values)))
        ids = [context.tolist() for context in contexts]
        return {"input_ids": ids, "source": [self.source.name] * len(ids)}

    def tokenize(self, value: Any) -> Int[Tensor, " pos"]:
        """The token ids of one row, without BOS; a ValueError for a value that does not fit the source's kind."""
        if self.source.kind == "tokens":
            return self._context(value)
        if self.source.kind == "text":
            if not isinstance(value, str):
                raise self._error(f"contains {value!r:.60}, which is not text")
            ids = torch.tensor(self.tokenizer(value, add_special_tokens=False)["input_ids"], dtype=torch.long)
        else:
            try:
                ids = tokenize_with_chat_template(self._messages(value), self.tokenizer)
            except Exception as error:  # a template may raise any exception
                raise self._error(f"contains a conversation that the chat template refuses ({error})") from error
        has_bos = len(ids) > 0 and int(ids[0]) == self.tokenizer.bos_token_id
        return ids[1:] if has_bos else ids

    def _valid_documents(self, values: Iterable[Any]) -> Iterator[Int[Tensor, "_"]]:
        for value in values:
            try:
                tokens = self.tokenize(value)
            except ValueError as error:
                _log.warning("Skipped a row: %s", error)
            else:
                yield tokens

    def _messages(self, value: Any) -> list[dict[str, Any]]:
        if isinstance(value, str):
            return [{"role": "user", "content": value}]  # as SAELens does
        role, content, roles = self.source.role_key, self.source.content_key, self.source.roles
        missing = {key for message in value for key in (role, content) if key not in message}
        if missing:
            raise ValueError(f"its messages have no {sorted(missing)}: set role_key and content_key")
        return [{"role": roles.get(message[role], message[role]), "content": message[content]} for message in value]

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
