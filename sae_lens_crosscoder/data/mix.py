"""What a run trains on: sources of text and conversations, and how they alternate."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from datasets import IterableDataset, interleave_datasets

SourceKind = Literal["text", "conversations", "tokens"]
MixRule = Literal["alternate", "probability"]
DEFAULT_COLUMNS: dict[str, str] = {"text": "text", "conversations": "messages", "tokens": "input_ids"}


@dataclass
class MixSource:
    """A dataset, and which of its columns is read how."""

    path: str
    """A dataset on the Hub; a folder; or a file, or files such as `data/*.jsonl`, ending in .json, .jsonl, .parquet or
    .txt (a document a line), compressed or not."""
    kind: SourceKind = "text"
    """`text`; `conversations`, written out with the chat model's template; or `tokens`, contexts of ids that were made
    beforehand, as by SAELens's PretokenizeRunner, and are read as they are."""
    column: str = ""
    """The column; by default `text`, `messages` or `input_ids`, by kind."""
    weight: float = 1.0
    """Share of the contexts, relative to those of the other sources. Contexts that are not padded are equally many
    tokens, so it is the share of the tokens, too."""
    config: str | None = None
    """Name of the dataset's configuration on the Hub."""
    split: str = "train"
    role_key: str = "role"
    """What a message calls who says it, such as `from`."""
    content_key: str = "content"
    """What a message calls what is said, such as `value`."""
    roles: dict[str, str] = field(default_factory=dict)
    """Names of roles in the dataset and what the template calls them, such as {"human": "user", "gpt": "assistant"}."""
    name: str = ""
    """What errors and statistics call it; by default its path."""

    def __post_init__(self) -> None:
        self.name = self.name or self.path
        if not self.path:
            raise ValueError("A source of the mix has no path: name a dataset, a folder or a file.")
        if self.kind not in get_args(SourceKind):
            raise ValueError(f"Source {self.name!r}: kind={self.kind!r} is not one of {get_args(SourceKind)}.")
        if not self.weight > 0:
            raise ValueError(f"Source {self.name!r}: weight={self.weight} must be positive; leave the source out.")
        self.column = self.column or DEFAULT_COLUMNS[self.kind]


@dataclass
class DataMix:
    """Several sources as one stream of contexts, each of which is of one source.

    A pass ends when the first source is at its end, so that the shares hold to the last context; the next pass begins
    with the first context of every source.
    """

    sources: list[MixSource]
    rule: MixRule = "alternate"
    """`alternate`: the sources in turn, a context each, as in the paper; `probability`: each context's source is drawn,
    with the weights as probabilities, from the run's seed."""

    def __post_init__(self) -> None:
        if self.rule not in get_args(MixRule):
            raise ValueError(f"rule={self.rule!r} of the mix is not one of {get_args(MixRule)}.")
        if not self.sources:
            raise ValueError("The mix has no sources: give at least one.")
        names = [source.name for source in self.sources]
        if len(set(names)) < len(names):
            raise ValueError(f"Sources of the mix must differ in name, not {names}: it tells their contexts apart.")
        if self.rule == "alternate" and len({source.weight for source in self.sources}) > 1:
            weights = {source.name: source.weight for source in self.sources}
            raise ValueError(f"Sources that alternate have equal weights, not {weights}: use rule='probability'.")

    def interleaved(self, rows: list[IterableDataset], seed: int) -> IterableDataset:
        """Rows of every source, in the order of `sources`, as one dataset."""
        if len(rows) == 1:
            return rows[0]
        total = sum(source.weight for source in self.sources)
        shares = [source.weight / total for source in self.sources]
        probabilities = None if self.rule == "alternate" else shares
        return interleave_datasets(rows, probabilities=probabilities, seed=seed)
