"""Documents as contexts of token ids."""

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
# Documents that are made into contexts together; what does not fill their last context is left out, as by SAELens.
_DOCUMENTS_AT_ONCE = 1000
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Packing:
    """How documents fill contexts, in ids of one tokenizer."""

    context_size: int
    bos_id: int | None = None
    """Stands first in every context; None for nothing."""
    separator_id: int | None = None
    """Stands between two documents of a context; None for nothing."""
    padding_id: int | None = None
    """What fills a context after its only document; None if documents follow one another."""
    only_long_documents: bool = False
    """Whether a document has a context to itself if it fills it, and is left out if it does not."""

    def contexts(self, documents: Iterable[Int[Tensor, "_"]]) -> Iterator[Int[Tensor, "_"]]:
        """Contexts of `context_size` tokens; the last tokens that do not fill one are left out.

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
    """Rows with `input_ids`, a context each, and the name of their `source`, made as they are read.

    BOS is where the packing puts it and nowhere else: the tokenizer adds none, and a template's own is taken away.
    A conversation that the template refuses is left out, with a warning.

    Raises:
        ValueError: unless the first row has the source's column and can be made into tokens.
    """
    first = next(iter(rows))
    if source.column not in first:
        raise ValueError(
            f"Source {source.name!r} has no column {source.column!r}, only {sorted(first)}: name the column of its "
            f"{source.kind}."
        )
    documents = _Documents(source, packing, tokenizer)
    documents.tokens(first[source.column])
    features = Features({"input_ids": List(Value("int64")), "source": Value("string")})
    return rows.select_columns([source.column]).map(
        documents,
        batched=True,
        batch_size=_DOCUMENTS_AT_ONCE,
        remove_columns=[source.column],
        features=features,
    )


class _Documents:
    """Makes the rows of one source into contexts, many at a time."""

    def __init__(self, source: MixSource, packing: Packing, tokenizer: Any) -> None:
        self.source, self.packing, self.tokenizer = source, packing, tokenizer
        if source.kind == "conversations" and getattr(tokenizer, "chat_template", None) is None:
            raise ValueError(
                f"Source {source.name!r} holds conversations, but the chat model's tokenizer has no chat template: "
                "give a chat model that has one."
            )

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        values = batch[self.source.column]
        if self.source.kind == "tokens":
            contexts = [self.tokens(value) for value in values]
        else:
            contexts = list(self.packing.contexts(self._readable(values)))
        ids = [context.tolist() for context in contexts]
        return {"input_ids": ids, "source": [self.source.name] * len(ids)}

    def tokens(self, value: Any) -> Int[Tensor, " pos"]:
        """The ids of one row.

        Raises a ValueError for what is not of the source's kind.
        """
        if self.source.kind == "tokens":
            return self._given(value)
        if self.source.kind == "text":
            if not isinstance(value, str):
                raise self._refusal(f"holds {value!r:.60}, which is no text")
            ids = torch.tensor(self.tokenizer(value, add_special_tokens=False)["input_ids"], dtype=torch.long)
        else:
            try:
                ids = tokenize_with_chat_template(self._messages(value), self.tokenizer)
            except Exception as error:  # templates raise what they like
                raise self._refusal(f"holds a conversation that the chat template refuses ({error})") from error
        has_bos = len(ids) > 0 and int(ids[0]) == self.tokenizer.bos_token_id
        return ids[1:] if has_bos else ids

    def _readable(self, values: Iterable[Any]) -> Iterator[Int[Tensor, "_"]]:
        for value in values:
            try:
                tokens = self.tokens(value)
            except ValueError as error:
                _log.warning("Left out: %s", error)
            else:
                yield tokens

    def _messages(self, value: Any) -> list[dict[str, Any]]:
        if isinstance(value, str):
            return [{"role": "user", "content": value}]  # as SAELens has it
        role, content, roles = self.source.role_key, self.source.content_key, self.source.roles
        missing = {key for message in value for key in (role, content) if key not in message}
        if missing:
            raise ValueError(f"its messages have no {sorted(missing)}: set role_key and content_key")
        return [{"role": roles.get(message[role], message[role]), "content": message[content]} for message in value]

    def _given(self, value: Any) -> Int[Tensor, " pos"]:
        size, padding = self.packing.context_size, self.packing.padding_id
        try:
            context = torch.as_tensor(value, dtype=torch.long)[:size]
        except (TypeError, ValueError, RuntimeError) as error:
            raise self._refusal(f"holds {value!r:.60}, which are no token ids") from error
        if len(context) < size and padding is not None:
            return pad(context, (0, size - len(context)), value=padding)
        if len(context) < size:
            raise self._refusal(f"has a row of {len(context)} tokens, too few for context_size={size}")
        return context

    def _refusal(self, problem: str) -> ValueError:
        return ValueError(f"Source {self.source.name!r}, column {self.source.column!r}, {problem}.")
