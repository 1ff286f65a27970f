"""PairActivationsStore: SAELens's activations store for a pair, resumable and with an in-place shuffle buffer."""

from collections.abc import Generator, Iterator
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from sae_lens import ActivationsStore
from sae_lens.config import HfDataset
from torch import Tensor
from tqdm.auto import tqdm
from typing_extensions import override

from sae_lens_crosscoder.activations.shuffle_buffer import MixedBatches, mixed_batches
from sae_lens_crosscoder.data.token_mask import TokenRule
from sae_lens_crosscoder.models.pair import HookedModelPair


class PairActivationsStore(ActivationsStore):
    """Streams stacked activations of a pair; tokens, epochs and filters are SAELens's.

    Activations are converted once, to the store's `dtype` (SAELens's are always float32), and mixed in place, in an
    order that depends on `seed` alone. The iterator over the store resumes bit for bit, which SAELens's checkpoints of
    a store do not.
    """

    seed: int = 0
    excluded_prefix: Int[Tensor, " prefix"] | None = None
    """Ids that the template writes before a user's first words, if their tokens are left out."""
    _n_sequences: int = 0
    """Contexts read in this pass over the dataset."""
    _n_skipped: int = 0
    """Contexts that the next pass skips at its start."""
    _n_read: int = 0
    """Contexts read in all passes."""

    @classmethod
    @override
    def from_config(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls, model: HookedModelPair, cfg: Any, override_dataset: HfDataset | None = None
    ) -> "PairActivationsStore":
        """Build SAELens's store from a runner config, with the config's seed and with padding excluded."""
        store: Any = super().from_config(model, cfg, override_dataset=override_dataset)
        store.seed = cfg.seed
        rule = TokenRule.from_config(cfg, model.tokenizer)
        store.exclude_special_tokens = None if rule.excluded is None else rule.excluded.to(store.device)
        store.excluded_prefix = rule.prefix
        return store

    def token_mask(self, batch_tokens: Int[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
        """True for tokens whose activations the store serves: of different tokenizers, those that are aligned."""
        pair: Any = self.model
        mask = TokenRule(self.seqpos_slice, self.exclude_special_tokens, self.excluded_prefix).mask(batch_tokens)
        return mask if pair.has_one_tokenizer else mask & pair.aligned(batch_tokens)

    @override
    def get_filtered_llm_batch(self, raise_on_epoch_end: bool = False) -> Float[Tensor, "_ d_in"]:
        """A batch of activations of the tokens in `token_mask`."""
        tokens = self.get_batch_tokens(raise_at_epoch_end=raise_on_epoch_end)
        activations = self.get_activations(tokens)
        mask = self.token_mask(tokens)[:, slice(*self.seqpos_slice)]
        return activations.to(self.device)[mask.to(self.device)]

    @override
    @torch.no_grad()
    def get_activations(self, batch_tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch _ d_in"]:
        """Stacked activations in the models' precision, on the base model's device."""
        pair: Any = self.model
        with torch.autocast(batch_tokens.device.type, dtype=torch.bfloat16, enabled=self.autocast_lm):
            activations = pair.activations(batch_tokens, self.hook_name, **self.model_kwargs)
        return activations[:, slice(*self.seqpos_slice)]

    @override
    def __iter__(self) -> Iterator[Tensor]:
        """The batches that `next` returns, as a resumable iterator."""
        if self._dataloader is None:
            self._dataloader = self.get_data_loader()
        return self._dataloader

    @override
    def get_data_loader(self) -> MixedBatches:
        """Endless shuffled batches (batch, d_in) in the store's precision, on its device."""
        return mixed_batches(
            _Chunks(self, self._iterate_filtered_activations()),
            batch_size=self.train_batch_size_tokens,
            buffer_size=self.n_batches_in_buffer * self.training_context_size,
            mix_fraction=self.activations_mixing_fraction,
            seed=self.seed,
            dtype=self.dtype,
            device=self.device,
        )

    @override
    def _iterate_tokenized_sequences(self) -> Generator[Tensor]:
        """SAELens's sequences, counted."""
        self._n_sequences, first = self._n_skipped, self._n_skipped
        self._n_skipped = 0
        for sequence in super()._iterate_tokenized_sequences():
            self._n_sequences += 1
            self._n_read += 1
            yield sequence
        if first > 0:
            self._seekable_dataset.load_state_dict(None)  # otherwise every later pass would also start there

    @property
    def _seekable_dataset(self) -> Any:
        """The dataset, if its own state identifies the position in the tokens.

        Not for text, whose contexts span rows, nor for the shuffle buffer of `datasets`, whose state lacks the rows.
        """
        has_state = hasattr(self.dataset, "state_dict") and hasattr(self.dataset, "load_state_dict")
        is_exact = self.is_dataset_tokenized and not _has_shuffle_buffer(getattr(self.dataset, "_ex_iterable", None))
        return self.dataset if has_state and is_exact else None

    def position(self) -> dict[str, Any]:
        """The position in the tokens, for `seek`."""
        dataset = self._seekable_dataset
        state = None if dataset is None else dataset.state_dict()
        return {
            "n_sequences": self._n_sequences,
            "n_read": self._n_read,
            "n_rows": self.n_dataset_processed,  # SAELens's count of finished rows
            "dataset": state,
        }

    def seek(self, position: dict[str, Any]) -> None:
        """Go to a position: directly if the dataset can, otherwise by reading up to it, without the models."""
        n_sequences = position["n_sequences"]
        dataset = self._seekable_dataset
        self.iterable_sequences = self._iterate_tokenized_sequences()
        if position["dataset"] is not None and dataset is not None:
            dataset.load_state_dict(position["dataset"])
            self._n_skipped = n_sequences
        else:
            for _ in tqdm(range(n_sequences), desc="Skipping to the checkpoint", leave=False):
                if next(self.iterable_sequences, None) is None:
                    raise ValueError(
                        f"The checkpoint was written after {n_sequences} contexts, but the dataset ends after "
                        f"{self._n_sequences}. Resume with the dataset that training started with."
                    )
        self._n_read, self.n_dataset_processed = position["n_read"], position["n_rows"]

    def skip_to(self, n_read: int) -> None:
        """Read until `n_read` contexts are read, over as many passes as needed, without the models."""
        while self._n_read < n_read:
            if next(self.iterable_sequences, None) is None:  # the next pass
                self.iterable_sequences = self._iterate_tokenized_sequences()


def _has_shuffle_buffer(rows: Any) -> bool:
    sources = [*getattr(rows, "ex_iterables", []), getattr(rows, "ex_iterable", None)]
    is_buffer = type(rows).__name__ == "BufferShuffledExamplesIterable"
    return is_buffer or any(_has_shuffle_buffer(source) for source in sources if source is not None)


class _Chunks(Iterator[Tensor]):
    """A store's activations; the position advances when a chunk is complete."""

    def __init__(self, store: PairActivationsStore, chunks: Iterator[Tensor]) -> None:
        self._store, self._chunks = store, chunks
        self._position = store.position()

    @override
    def __next__(self) -> Float[Tensor, "_ d_in"]:
        chunk = next(self._chunks)
        self._position = self._store.position()
        return chunk

    def state_dict(self) -> dict[str, Any]:
        return self._position

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._store.seek(state)
        self._position = state

    def fast_forward(self, state: dict[str, Any], ratio: float) -> None:
        self._store.skip_to(int(ratio * state["n_read"]))
        self._position = self._store.position()
