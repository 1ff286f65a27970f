"""The models and the data of a run, from its config alone."""

from functools import cached_property
from itertools import islice
from typing import Any

import torch
from jaxtyping import Bool, Int
from sae_lens.config import HfDataset
from torch import Tensor

from sae_lens_crosscoder.activations.cache.reader import ActivationCache
from sae_lens_crosscoder.activations.eval_data import EvalData
from sae_lens_crosscoder.activations.pair_check import N_CONTEXTS, PairCheck, inspect_cached, inspect_pair
from sae_lens_crosscoder.activations.store import PairActivationsStore
from sae_lens_crosscoder.crosscoders.collectives import Collectives
from sae_lens_crosscoder.models.hook_access import device_of
from sae_lens_crosscoder.models.loading import load_tokenizer
from sae_lens_crosscoder.models.pair import HookedModelPair
from sae_lens_crosscoder.training.data.run_answers import run_answers, sources_of_answers
from sae_lens_crosscoder.training.data.run_cache import load_run_cache
from sae_lens_crosscoder.training.data.run_rows import RunRows
from sae_lens_crosscoder.training.runner_config import CrosscoderRunnerConfig
from sae_lens_crosscoder.training.validation import validate_device

_N_CACHED_TOKENS = 2048


class RunData:
    """Training and held-out data of a run: activations of the pair, or of a cache.

    Attributes:
        activations_store: an endless iterator of batches (batch, d_in) to train on; of several processes, this one's
            share of them.
        model_names: the base and the chat model's, or the only model's, None where they are not known.
    """

    def __init__(
        self,
        cfg: CrosscoderRunnerConfig,
        override_dataset: HfDataset | None,
        override_model: HookedModelPair | None,
        collectives: Collectives,
    ) -> None:
        for device in (cfg.device, cfg.llm_device, cfg.chat_device, cfg.act_store_device):
            validate_device(device)
        self.cfg = cfg
        self.collectives = collectives
        """The processes of this run."""
        self._share = cfg.share_of_stream(collectives.n_processes)
        self._pair = override_model
        self._rows: RunRows | None = None
        self._held_out_cache: ActivationCache | None = None
        self.activations_store: Any
        self.model_names: tuple[str | None, ...]
        if cfg.use_cached_activations:
            self._read_cache(override_dataset)
        else:
            self._read_models(override_dataset)

    @property
    def reads_cache(self) -> bool:
        return self._held_out_cache is not None

    @property
    def pair(self) -> HookedModelPair:
        """The two models, which a run on cached activations does not load."""
        if self._pair is None:
            raise ValueError(
                "This run reads cached activations and has loaded no models: use those of `held_out_data`, or load the "
                "pair with HookedModelPair.from_pretrained."
            )
        return self._pair

    @property
    def tokenizer(self) -> Any:
        """The chat model's, for which no model is loaded."""
        cfg = self.cfg
        return load_tokenizer(cfg.model_names[-1], cfg.model_class_name) if self._pair is None else self._pair.tokenizer

    @cached_property
    def held_out_tokens(self) -> Int[Tensor, "batch pos"]:
        """The held-out rows as contexts, which training never saw."""
        return torch.stack(list(self.held_out_store.iterable_sequences))

    def first_held_out_contexts(self, n: int) -> Int[Tensor, "batch pos"]:
        """The first `n` held-out contexts, or all if there are fewer, without reading the rest."""
        assert self._rows is not None  # they come with the pair
        return torch.tensor([row["input_ids"] for row in islice(self._rows.held_out, n)])

    @property
    def held_out_kept(self) -> Bool[Tensor, "batch pos"]:
        """Mask of the `held_out_tokens` that training would use: no padding, no excluded tokens."""
        return self.held_out_store.token_mask(self.held_out_tokens)

    @cached_property
    def held_out_sources(self) -> list[str]:
        """The source that each row of `held_out_tokens` comes from, by name."""
        assert self._rows is not None  # or held_out_tokens would have raised
        return [row["source"] for row in self._rows.held_out]

    def held_out_data(self, n_rows: int | None = None) -> EvalData:
        """Held-out data for `diagnose` and other analyses: the pair with tokens, or cached activations.

        Args:
            n_rows: number of contexts; None for all.
        """
        if self._held_out_cache is None:
            mask = self.held_out_kept[:n_rows]
            tokens = self.held_out_tokens[:n_rows]
            return EvalData(pair=self.pair, tokens=tokens, token_mask=mask, max_norm_ratio=self.cfg.max_norm_ratio)
        if n_rows is not None:
            raise ValueError(
                f"n_rows={n_rows} applies to tokens, but this run reads a cache, which is used completely. Leave "
                "n_rows out."
            )
        return EvalData(activations=self._held_out_cache, max_norm_ratio=self.cfg.max_norm_ratio)

    def inspect_pair(self) -> PairCheck:
        """Look at the first held-out contexts; training data and random numbers stay as they are.

        A run on cached activations has loaded no models: it has what the cache's manifest says, and of a cache without
        that, the size of the difference.

        Raises:
            ValueError: as `activations.pair_check.inspect_pair`.
        """
        cfg = self.cfg
        if self._held_out_cache is not None:
            recorded = self._held_out_cache.manifest.pair_check
            if recorded is not None:
                return PairCheck.from_dict(recorded)
            rows = next(iter(self._held_out_cache))[:_N_CACHED_TOKENS]
            return inspect_cached(rows, self._held_out_cache.layout, cfg.hook_name)
        tokens = self.first_held_out_contexts(N_CONTEXTS)
        mask = self.activations_store.token_mask(tokens)
        device = device_of(self.pair.base).type
        with torch.autocast(device, dtype=torch.bfloat16, enabled=cfg.autocast_lm):
            return inspect_pair(self.pair, tokens, mask, cfg.hook_name, **cfg.model_kwargs)

    @property
    def held_out_store(self) -> PairActivationsStore:
        pair = self.pair
        assert self._rows is not None  # they come with the pair
        return PairActivationsStore.from_config(pair, self.cfg, override_dataset=self._rows.held_out)

    def _read_models(self, override_dataset: HfDataset | None) -> None:
        """Activations as the models make them; everything about the data is checked before they are loaded."""
        cfg = self.cfg
        tokenizer, answers = None if self._pair is None else self._pair.tokenizer, None
        if override_dataset is None and sources_of_answers(cfg):
            tokenizer = tokenizer or load_tokenizer(cfg.model_names[-1], cfg.model_class_name)
            worker = (self.collectives.rank, self.collectives.n_processes)
            answers = run_answers(cfg, tokenizer, self._pair, self._load_pair, worker)
        self._rows = RunRows(cfg, override_dataset, tokenizer, self.collectives, answers)
        pair = self._load_pair()
        self.model_names = pair.model_names or (None,) * len(pair.members)
        self.activations_store = PairActivationsStore.from_config(
            pair, self._share, override_dataset=self._rows.training
        )

    def _load_pair(self) -> HookedModelPair:
        if self._pair is None:
            self._pair = load_pair(self.cfg)
        if len(self._pair.members) != len(self.cfg.model_names):
            raise ValueError(
                f"override_model has {len(self._pair.members)} models, but the config names {self.cfg.model_names}. "
                "Set chat_model_name=None for one model, more_model_names for more than two."
            )
        self._validate_widths(self._pair.layout_at(self.cfg.hook_name).d_models)
        if any(getattr(cfg, "causality", "") == "weak" for cfg in self.cfg.crosscoder_configs.values()):
            self._pair.validate_order(self.cfg.hook_name)
        return self._pair

    def _read_cache(self, override_dataset: HfDataset | None) -> None:
        """Activations from disk, in random order."""
        cfg = self.cfg
        if override_dataset is not None or self._pair is not None:
            raise ValueError("use_cached_activations=True needs no dataset and no models: leave them out.")
        training, self._held_out_cache = load_run_cache(cfg)
        self._validate_widths(training.layout.d_models)
        self.model_names = training.manifest.model_names or (None,) * training.layout.n_models
        self.activations_store = training.shuffled(
            self._share.train_batch_size_tokens,
            seed=cfg.seed,
            buffer_size=min(self._share.n_batches_in_buffer * cfg.context_size, len(training)),
            mix_fraction=cfg.activations_mixing_fraction,
            part=(self.collectives.rank, self.collectives.n_processes),
        )

    def _validate_widths(self, found: tuple[int, ...]) -> None:
        for name, cfg in self.cfg.crosscoder_configs.items():
            if cfg.layout.d_models != found:  # pyright: ignore[reportAttributeAccessIssue]
                raise ValueError(
                    f"Crosscoder {name!r} is configured for models of widths {cfg.layout.d_models}, "  # pyright: ignore[reportAttributeAccessIssue]
                    f"but at {self.cfg.hook_name} these models are {found} wide: set d_models={found}."
                )


def load_pair(cfg: CrosscoderRunnerConfig) -> HookedModelPair:
    """The pair of models that a run is of."""
    return HookedModelPair.from_pretrained(
        *cfg.model_names,
        device=cfg.llm_device or cfg.device,
        chat_device=cfg.chat_device,
        dtype=cfg.model_dtype,
        model_class_name=cfg.model_class_name,
        token_replacements=cfg.token_replacements,
        align_tokens=cfg.align_tokens,
        **(cfg.model_from_pretrained_kwargs or {}),
    )
