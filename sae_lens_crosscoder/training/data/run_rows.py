"""The contexts that a run is trained on, and those that it is diagnosed on."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from datasets import Dataset, IterableDataset
from sae_lens.config import HfDataset
from sae_lens.pretokenize_runner import get_special_token_from_cfg

from sae_lens_crosscoder.crosscoders.collectives import SINGLE_PROCESS, Collectives
from sae_lens_crosscoder.data.mix import DataMix, MixSource, SourceKind
from sae_lens_crosscoder.data.packed_rows import pack_rows
from sae_lens_crosscoder.data.packing import Packing
from sae_lens_crosscoder.data.sources import every_nth_row, hold_out, load_rows, load_source
from sae_lens_crosscoder.data.token_mask import padding_id
from sae_lens_crosscoder.models.loading import load_tokenizer
from sae_lens_crosscoder.training.runner_config import CrosscoderRunnerConfig

# Where SAELens's store looks for what a row holds, in its order.
_FIELDS: tuple[tuple[SourceKind, str], ...] = (
    ("tokens", "tokens"),
    ("tokens", "input_ids"),
    ("text", "text"),
    ("text", "problem"),
)
_CHAT_FIELDS: tuple[tuple[SourceKind, str], ...] = (
    ("conversations", "conversation"),
    ("conversations", "conversations"),
    ("conversations", "messages"),
    ("conversations", "text"),
)


class RunRows:
    """A run's data as contexts of token ids, made while they are read; no model is needed.

    Args:
        override_dataset: rows to use in place of what the config names.
        tokenizer: the chat model's; None to load it if it is needed.
        collectives: the processes that train together, of which each has its own rows of every source to train on.
        answers: by name of a source of the kind `answers`, rows of its prompts' documents (`RunAnswers.rows`).

    Attributes:
        training, held_out: datasets with `input_ids` of `context_size` ids and the name of their `source`. They share
            no row of any source, nor do two processes' `training`. `state_dict` and `load_state_dict` of `training` are
            its place, exactly.

    Raises:
        ValueError: for a file, a column or a chat template that is not there, a tokenizer without a token that the
            config asks for, an empty source, or one that is all held out.
    """

    def __init__(
        self,
        cfg: CrosscoderRunnerConfig,
        override_dataset: HfDataset | None = None,
        tokenizer: Any = None,
        collectives: Collectives = SINGLE_PROCESS,
        answers: Mapping[str, Dataset] | None = None,
    ) -> None:
        self._cfg, self._given_tokenizer, self._answers = cfg, tokenizer, answers or {}
        mix, rows = self._sources(override_dataset)
        parts = [hold_out(each, cfg.n_held_out_rows) for each in rows]
        n, rank = collectives.n_processes, collectives.rank
        self.training = self._mixed(mix, [every_nth_row(training, n, first=rank) for training, _ in parts])
        self.held_out = self._mixed(mix, [held_out for _, held_out in parts])
        if next(iter(self.held_out), None) is None:
            raise ValueError(
                f"n_held_out_rows={cfg.n_held_out_rows} documents of every source do not fill one context of "
                f"{cfg.context_size} tokens: hold out more."
            )

    def _sources(self, override_dataset: Any) -> tuple[DataMix, list[Dataset | IterableDataset]]:
        cfg = self._cfg
        if cfg.mix is not None and override_dataset is None:
            return cfg.mix, [self._answers.get(source.name) or load_source(source) for source in cfg.mix.sources]
        rows = override_dataset
        if rows is None:
            rows = load_rows(
                cfg.dataset_path,
                streaming=cfg.streaming,
                # The shuffling buffer is filled before the first batch leaves it.
                n_tokens=cfg.training_tokens + 2 * cfg.n_batches_in_buffer * cfg.context_size,
                n_held_out_rows=cfg.n_held_out_rows,
                seed=cfg.seed,
            )
        fields = _CHAT_FIELDS if cfg.use_chat_formatting else _FIELDS
        first = next(iter(rows), {})
        kind, field = next((known for known in fields if known[1] in first), fields[0])
        name = cfg.dataset_path or "override_dataset"
        return DataMix([MixSource(name, kind, field)]), [rows]

    def _mixed(self, mix: DataMix, rows: list[IterableDataset]) -> IterableDataset:
        contexts = [self._in_contexts(part, source) for part, source in zip(rows, mix.sources, strict=True)]
        return mix.interleaved(contexts, self._cfg.seed)

    def _in_contexts(self, rows: IterableDataset, source: MixSource) -> IterableDataset:
        padded = self._cfg.packing == "one_document"
        if source.kind == "tokens":
            padding = padding_id(self._cfg, self.tokenizer) if padded else None
            return pack_rows(rows, source, Packing(self._cfg.context_size, padding_id=padding), None)
        return pack_rows(rows, source, self._packing, self.tokenizer)

    @cached_property
    def tokenizer(self) -> Any:
        """The chat model's, because it carries the chat template."""
        cfg = self._cfg
        return self._given_tokenizer or load_tokenizer(cfg.model_names[-1], cfg.model_class_name)

    @cached_property
    def _packing(self) -> Packing:
        cfg = self._cfg
        padded = cfg.packing == "one_document"
        separator = None if padded else cfg.sequence_separator_token
        return Packing(
            context_size=cfg.context_size,
            bos_id=self._special("bos", "prepend_bos", False) if cfg.prepend_bos else None,
            separator_id=self._special(separator, "sequence_separator_token", None),
            padding_id=padding_id(cfg, self.tokenizer) if padded else None,
            only_long_documents=cfg.disable_concat_sequences,
        )

    def _special(self, token: Any, field: str, without: Any) -> int | None:
        found = get_special_token_from_cfg(token, self.tokenizer)
        if token is not None and found is None:
            raise ValueError(
                f"{field} needs a {token} token, which the chat model's tokenizer lacks. Without it no mark separates "
                f"documents: name another token, or pass {field}={without} to train without."
            )
        return found
