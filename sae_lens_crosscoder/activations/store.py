"""SAELens's activations store with a buffer that is refilled in place."""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from sae_lens import ActivationsStore
from sae_lens.config import HfDataset
from safetensors.torch import load_file
from torch import Tensor
from typing_extensions import override

from sae_lens_crosscoder.activations.mixing import mixed_batches
from sae_lens_crosscoder.models.pair import HookedModelPair


class PairActivationsStore(ActivationsStore):
    """Streams stacked activations of a pair; tokens, epochs, filters and checkpoints are SAELens's.

    Different are what lies between the models and the batches: activations are converted once, to the store's `dtype`
    (SAELens's are float32 whatever it says), and mixed in place, in an order that depends on `seed` alone.
    """

    seed: int = 0
    n_processes: int = 1
    """How many share the dataset, each its own rows, of which all read about as many."""

    @classmethod
    @override
    def from_config(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls, model: HookedModelPair, cfg: Any, override_dataset: HfDataset | None = None
    ) -> "PairActivationsStore":
        """As SAELens's, for a runner config, with the config's seed."""
        store: Any = super().from_config(model, cfg, override_dataset=override_dataset)
        store.seed = cfg.seed
        return store

    @override
    @torch.no_grad()
    def get_activations(self, batch_tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch _ d_in"]:
        """Stacked activations as the models give them, in their precision and on the base model's device."""
        pair: Any = self.model
        with torch.autocast(batch_tokens.device.type, dtype=torch.bfloat16, enabled=self.autocast_lm):
            activations = pair.activations(batch_tokens, self.hook_name, **self.model_kwargs)
        return activations[:, slice(*self.seqpos_slice)]

    @override
    def state_dict(self) -> dict[str, Tensor]:
        """SAELens's, which counts the rows that all processes have read."""
        return {"n_dataset_processed": torch.tensor(self.n_processes * self.n_dataset_processed)}

    @override
    def load(self, file_path: str) -> None:
        """Read up to this process's share of the rows that all had read, by however many they were."""
        n_rows = int(load_file(file_path)["n_dataset_processed"]) // self.n_processes
        while self.n_dataset_processed < n_rows:
            if next(self.iterable_sequences, None) is None:  # the next epoch
                self.iterable_sequences = self._iterate_tokenized_sequences()

    @override
    def get_data_loader(self) -> Iterator[Any]:
        """Endless mixed batches (batch, d_in) in the store's precision, on its device."""
        return mixed_batches(
            self._iterate_filtered_activations(),
            batch_size=self.train_batch_size_tokens,
            buffer_size=self.n_batches_in_buffer * self.training_context_size,
            mix_fraction=self.activations_mixing_fraction,
            seed=self.seed,
            dtype=self.dtype,
            device=self.device,
        )
