"""DataMix: the sources of text and conversations that a run trains on, and how they alternate."""

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from datasets import IterableDataset, interleave_datasets

from sae_lens_crosscoder.storage.field_types import validate_config

SourceKind = Literal["text", "conversations", "tokens", "answers"]
MixRule = Literal["alternate", "probability"]
DEFAULT_COLUMNS: dict[str, str] = {"text": "text", "tokens": "input_ids"}


@dataclass
class MixSource:
    """A dataset, the column to read, and how to read it."""

    path: str = ""
    """A dataset on the Hub; a folder; or a file, or files such as `data/*.jsonl`, ending in .json, .jsonl, .parquet or
    .txt (a document a line), compressed or not."""
    kind: SourceKind = "text"
    """`text`; `conversations`, rendered with the chat model's template; `tokens`, contexts of ids made beforehand, as
    by SAELens's PretokenizeRunner, which are read unchanged; or `answers`: both models answer the source's prompts, and
    both read every answer."""
    column: str = ""
    """The column to read; by default `text`, `input_ids`, or for conversations the first of `messages`, `conversations`
    and `conversation` that the source has; for answers also `prompt` and `text`, before and after these."""
    weight: float = 1.0
    """Share of the contexts, relative to the other sources. Contexts that are not padded have equally many tokens, so
    it is also the share of the tokens."""
    config: str | None = None
    """Name of the dataset's configuration on the Hub."""
    split: str = "train"
    """The split to read on the Hub."""
    role_key: str = "role"
    """Key of a message's speaker. ShareGPT's `from` is recognised."""
    content_key: str = "content"
    """Key of a message's text. ShareGPT's `value` is recognised."""
    roles: dict[str, str] = field(default_factory=dict)
    """The template's name for each role of the dataset, such as {"narrator": "user"}. ShareGPT's roles are known; any
    other role than a template's (`system`, `user`, `assistant`, `tool`, `developer`) is refused until it is mapped."""
    name: str = ""
    """Name of the source in errors and statistics; by default its path."""
    prompts: list[Any] = field(default_factory=list)
    """Of `answers`, instead of `path`: texts, or conversations that end with the user."""
    n_prompts: int = 1000
    """Of `answers`: the first prompts to read, held-out ones included. A conversation is a prompt up to the user's last
    message."""
    max_new_tokens: int = 64
    """Of `answers`: length at which an answer that does not end is cut off."""
    temperature: float = 0.0
    """Of `answers`: 0 for the most likely tokens (greedy); otherwise sampled, with the run's seed."""

    def __post_init__(self) -> None:
        validate_config(self)
        self.name = self.name or self.path or ("prompts" if self.prompts else "")
        if not self.path and not self.prompts:
            raise ValueError("A source of the mix has no path. Name a dataset, a folder or a file.")
        if self.kind not in get_args(SourceKind):
            raise ValueError(f"Source {self.name!r}: kind={self.kind!r} is not one of {get_args(SourceKind)}.")
        if self.prompts and (self.path or self.kind != "answers"):
            raise ValueError(f"Source {self.name!r}: prompts need kind='answers' and no path, got {self.path!r}.")
        if self.n_prompts < 1:
            raise ValueError(f"Source {self.name!r}: n_prompts={self.n_prompts} must be at least 1.")
        if not self.weight > 0:
            raise ValueError(
                f"Source {self.name!r}: weight={self.weight} must be positive. Remove the source to leave it out."
            )
        self.column = self.column or DEFAULT_COLUMNS.get(self.kind, "")


@dataclass
class DataMix:
    """Several sources as one stream of contexts, each from one source.

    A pass ends when the first source ends, so that the shares hold to the last context; the next pass starts with the
    first context of every source.
    """

    sources: list[MixSource]
    """The sources to mix."""
    rule: MixRule = "alternate"
    """`alternate`: one context from each source in turn, as in the paper; `probability`: draw each context's source
    with the weights as probabilities, from the run's seed."""

    def __post_init__(self) -> None:
        validate_config(self)
        if self.rule not in get_args(MixRule):
            raise ValueError(f"rule={self.rule!r} of the mix is not one of {get_args(MixRule)}.")
        if not self.sources:
            raise ValueError("The mix has no sources. Pass at least one.")
        names = [source.name for source in self.sources]
        if len(set(names)) < len(names):
            raise ValueError(f"The mix's source names {names} contain duplicates. Set a different `name` for each.")
        if self.rule == "alternate" and len({source.weight for source in self.sources}) > 1:
            weights = {source.name: source.weight for source in self.sources}
            raise ValueError(f"rule='alternate' needs equal weights, got {weights}. Use rule='probability'.")

    def interleaved(self, rows: list[IterableDataset], seed: int) -> IterableDataset:
        """Rows of every source, given in the order of `sources`, as one dataset."""
        if len(rows) == 1:
            return rows[0]
        total = sum(source.weight for source in self.sources)
        shares = [source.weight / total for source in self.sources]
        probabilities = None if self.rule == "alternate" else shares
        return interleave_datasets(rows, probabilities=probabilities, seed=seed)
