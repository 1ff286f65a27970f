"""Packing: documents of token ids cut into contexts of equal size."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Int
from sae_lens.tokenization_and_batching import concat_and_batch_sequences
from torch import Tensor
from torch.nn.functional import pad

PackingRule = Literal["concatenated", "one_document"]


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
        unfinished: list[int] = []
        for document in documents:
            contexts, unfinished = self.add(unfinished, document)
            yield from contexts

    def add(self, unfinished: list[int], document: Int[Tensor, "_"]) -> tuple[list[Int[Tensor, "_"]], list[int]]:
        """The contexts that a document completes, and the beginning of the next one.

        Args:
            unfinished: tokens of earlier documents that do not fill a context yet.
        """
        if len(document) == 0:
            return [], unfinished
        if self.padding_id is not None:
            has_bos = self.bos_id is None or int(document[0]) == self.bos_id
            first = torch.tensor([] if has_bos else [self.bos_id], dtype=torch.long)
            context = torch.cat([first, document])[: self.context_size]
            return [pad(context, (0, self.context_size - len(context)), value=self.padding_id)], []
        if self.only_long_documents:
            options: dict[str, Any] = {"begin_batch_token_id": self.bos_id, "disable_concat_sequences": True}
            return list(concat_and_batch_sequences(iter([document]), self.context_size, **options)), []
        return self._concatenated(unfinished, document.tolist())

    def _concatenated(self, unfinished: list[int], document: list[int]) -> tuple[list[Int[Tensor, "_"]], list[int]]:
        """As SAELens's `concat_and_batch_sequences`, which cannot stop between two documents and go on."""
        contexts: list[Tensor] = []
        context, position = list(unfinished), 0
        while position < len(document):
            mark = self.separator_id if context else self.bos_id
            if mark is not None and document[position] != mark:
                context.append(mark)
            n_free = self.context_size - len(context)
            context += document[position : position + n_free]
            position += n_free
            if len(context) == self.context_size:
                contexts.append(torch.tensor(context))
                context = []
        return contexts, context
