"""SAELens's activations store with a buffer that is refilled in place."""

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
from sae_lens_crosscoder.data.token_mask import excluded_ids, make_token_mask
from sae_lens_crosscoder.models.pair import HookedModelPair


class PairActivationsStore(ActivationsStore):
    """Streams stacked activations of a pair; tokens, epochs, filters and checkpoints are SAELens's.

    Different are what lies between the models and the batches: activations are converted once, to the store's `dtype`
    (SAELens's are float32 whatever it says), and mixed in place, in an order that depends on `seed` alone. The iterator
    over the store can be saved and gone on with to the bit, which SAELens's checkpoints of a store do not promise.
    """

    seed: int = 0
    _n_sequences: int = 0
    """Contexts read in this pass over the dataset."""
    _n_skipped: int = 0
    """Contexts of the pass to come that lie before the place it begins at."""
    _n_read: int = 0
    """Contexts read in all passes."""

    @classmethod
    @override
    def from_config(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls, model: HookedModelPair, cfg: Any, override_dataset: HfDataset | None = None
    ) -> "PairActivationsStore":
        """As SAELens's, for a runner config, with the config's seed, and without padding."""
        store: Any = super().from_config(model, cfg, override_dataset=override_dataset)
        store.seed = cfg.seed
        excluded = excluded_ids(cfg, model.tokenizer)
        store.exclude_special_tokens = None if excluded is None else excluded.to(store.device)
        return store

    def token_mask(self, batch_tokens: Int[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
        """True for tokens whose activations the store serves."""
        return make_token_mask(batch_tokens, self.seqpos_slice, self.exclude_special_tokens)

    @override
    @torch.no_grad()
    def get_activations(self, batch_tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch _ d_in"]:
        """Stacked activations as the models give them, in their precision and on the base model's device."""
        pair: Any = self.model
        with torch.autocast(batch_tokens.device.type, dtype=torch.bfloat16, enabled=self.autocast_lm):
            activations = pair.activations(batch_tokens, self.hook_name, **self.model_kwargs)
        return activations[:, slice(*self.seqpos_slice)]

    @override
    def __iter__(self) -> Iterator[Tensor]:
        """The batches that `next` gives, as an iterator that can be saved and gone on with."""
        if self._dataloader is None:
            self._dataloader = self.get_data_loader()
        return self._dataloader

    @override
    def get_data_loader(self) -> MixedBatches:
        """Endless mixed batches (batch, d_in) in the store's precision, on its device."""
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
        """SAELens's, counted."""
        self._n_sequences, first = self._n_skipped, self._n_skipped
        self._n_skipped = 0
        for sequence in super()._iterate_tokenized_sequences():
            self._n_sequences += 1
            self._n_read += 1
            yield sequence
        if first > 0:
            self._seekable_dataset.load_state_dict(None)  # or every further pass would begin there as well

    @property
    def _seekable_dataset(self) -> Any:
        """The dataset, if its own state is the place in the tokens.

        That is not so for text, whose contexts are not cut between rows, nor for the shuffling buffer of `datasets`,
        whose rows are missing in the state.
        """
        has_state = hasattr(self.dataset, "state_dict") and hasattr(self.dataset, "load_state_dict")
        is_exact = self.is_dataset_tokenized and not _has_shuffle_buffer(getattr(self.dataset, "_ex_iterable", None))
        return self.dataset if has_state and is_exact else None

    def place(self) -> dict[str, Any]:
        """How far the tokens were read."""
        dataset = self._seekable_dataset
        state = None if dataset is None else dataset.state_dict()
        return {
            "n_sequences": self._n_sequences,
            "n_read": self._n_read,
            "n_rows": self.n_dataset_processed,  # SAELens's count, of rows that it is done with
            "dataset": state,
        }

    def go_to(self, place: dict[str, Any]) -> None:
        """Read on from a place: at once where the dataset can, otherwise by reading up to it, without the models."""
        n_sequences = place["n_sequences"]
        dataset = self._seekable_dataset
        self.iterable_sequences = self._iterate_tokenized_sequences()
        if place["dataset"] is not None and dataset is not None:
            dataset.load_state_dict(place["dataset"])
            self._n_skipped = n_sequences
        else:
            for _ in tqdm(range(n_sequences), desc="Reading up to the checkpoint", leave=False):
                if next(self.iterable_sequences, None) is None:
                    raise ValueError(
                        f"The checkpoint was written {n_sequences} contexts into a dataset that now ends after "
                        f"{self._n_sequences}: go on with the dataset that training began with."
                    )
        self._n_read, self.n_dataset_processed = place["n_read"], place["n_rows"]

    def read_up_to(self, n_read: int) -> None:
        """Read on behind as many contexts, in as many passes as they are, without the models."""
        while self._n_read < n_read:
            if next(self.iterable_sequences, None) is None:  # the next pass
                self.iterable_sequences = self._iterate_tokenized_sequences()


def _has_shuffle_buffer(rows: Any) -> bool:
    sources = [*getattr(rows, "ex_iterables", []), getattr(rows, "ex_iterable", None)]
    found = (_has_shuffle_buffer(source) for source in sources if source is not None)
    return type(rows).__name__ == "BufferShuffledExamplesIterable" or any(found)


class _Chunks(Iterator[Tensor]):
    """A store's activations, whose place moves on when a chunk is whole."""

    def __init__(self, store: PairActivationsStore, chunks: Iterator[Tensor]) -> None:
        self._store, self._chunks = store, chunks
        self._place = store.place()

    @override
    def __next__(self) -> Float[Tensor, "_ d_in"]:
        chunk = next(self._chunks)
        self._place = self._store.place()
        return chunk

    def state_dict(self) -> dict[str, Any]:
        return self._place

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._store.go_to(state)
        self._place = state

    def approach(self, state: dict[str, Any], share: float) -> None:
        self._store.read_up_to(int(share * state["n_read"]))
        self._place = self._store.place()
