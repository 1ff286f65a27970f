"""Config fields that every crosscoder shares, for training and for inference."""

import difflib
from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, get_args

import simple_parsing
from sae_lens import SAEConfig
from sae_lens.saes.sae import SAEMetadata
from typing_extensions import override

from sae_lens_crosscoder.crosscoders.causality import Causality, WeakCausality, validate_order
from sae_lens_crosscoder.crosscoders.partition import Partition
from sae_lens_crosscoder.crosscoders.scores import SCORES, Score
from sae_lens_crosscoder.stacking import StackedLayout
from sae_lens_crosscoder.storage.field_types import matches_type, validate_config
from sae_lens_crosscoder.storage.names import printable_names

HOST_NORMALISERS = ("none", "expected_average_only_in")
# SAELens's own loaders add this key to a config they read.
_HOST_KEYS = ("finetuning_scaling_factor",)
_METADATA_NAMES = ("model_name", "chat_model_name", "hook_name", "dataset_path", "sae_lens_version", "null_kind")


def _numbers(kind: type) -> Any:
    """A field of several numbers, also on the command line: `--d_models 2304 2304`."""
    return simple_parsing.field(default=None, type=kind, nargs="+")


@dataclass(kw_only=True)
class CrosscoderConfigBase(SAEConfig, ABC):
    """Crosscoder fields of a SAELens config. Give one of `d_model`, `d_models`, `d_in`; the rest is derived.

    A model at a hook is a source. With `hook_names`, every model is read at several hooks, and `d_models`,
    `activation_scales` and the like have one entry per source: the base model's at all hooks, then the chat model's.
    """

    d_in: int = 0
    """Stacked width, the sum of `d_models`. Given alone it must be even, and means two models of half of it."""
    d_model: int | None = None
    """Width of one model, for two models of equal width; None when the widths differ."""
    d_models: tuple[int, ...] | list[int] | None = _numbers(int)
    """Width of every model, base first. Always set after construction."""
    hook_names: tuple[str, ...] | list[str] | None = simple_parsing.field(default=None, cmd=False)
    """The hooks at which every model is read, if they are several; None for one. A runner config sets it."""
    causality: Causality = "acausal"
    """With several hooks: `acausal` lets every latent read and write all of them. `weak` divides the latents evenly
    between the hooks (of a Matryoshka crosscoder, those of each level); a latent reads its own hook and writes that and
    later ones, so it says where a concept starts."""
    score: Score = "sum"
    """The norm s_j of a latent: `sum` of the models' decoder norms (the paper's), `l2`, `max` or `none`."""
    activation_scales: tuple[float, ...] | list[float] | None = _numbers(float)
    """One factor c_m per source by which its activations were multiplied in training; None means all 1."""
    apply_b_dec_to_input: bool = False
    """Must stay False: a crosscoder's encoder sees the activations without the decoder bias."""
    metadata: Any = field(default_factory=SAEMetadata)
    """SAELens's record of what the crosscoder is of: models, hook, dataset, seed. Its loader hands in a dict first."""

    @override
    def __post_init__(self) -> None:
        validate_config(self)
        # JSON knows no tuples, and SAELens's loaders hand us what JSON gave them.
        self.hook_names = None if self.hook_names is None else tuple(self.hook_names)
        self.d_models = resolve_widths(self.d_model, self.d_models, self.d_in, n_hooks=len(self.hook_names or (0,)))
        self.d_in = self.layout.d_in
        self.d_model = self.d_models[0] if self.layout.same_width else None
        if self.activation_scales is not None:
            self.activation_scales = tuple(float(scale) for scale in self.activation_scales)
        self._validate_fields()
        super().__post_init__()

    @property
    def layout(self) -> StackedLayout:
        assert self.d_models is not None  # set in __post_init__
        return StackedLayout(tuple(self.d_models), tuple(self.hook_names or ()))

    @property
    def partition(self) -> Partition | None:
        """The partition into exclusive and shared latents; None if all latents are shared."""
        return None

    def weak_causality(self, shard: int = 0, n_shards: int = 1) -> WeakCausality | None:
        """The hook that each latent reads, of the `d_sae` latents of a shard; None if all latents read all hooks.

        Raises:
            ValueError: for weak causality without several hooks.
        """
        if self.causality == "acausal":
            return None
        if self.hook_names is None:
            raise ValueError("causality='weak' needs several hooks: name them as hook_names of the run.")
        whole = WeakCausality.over(len(self.hook_names), *self.causal_levels(n_shards))
        return whole.of_rows(shard * self.d_sae, self.d_sae)

    def causal_levels(self, n_shards: int) -> tuple[int, ...]:
        """Numbers of consecutive latents, of all shards, each of which is divided between the hooks."""
        return (n_shards * self.d_sae,)

    def _validate_fields(self) -> None:
        if self.causality not in get_args(Causality):
            raise ValueError(f"causality={self.causality!r} is not one of {get_args(Causality)}.")
        if self.causality == "weak" and self.hook_names is not None:
            validate_order(self.hook_names)
        if self.d_sae < 1:
            raise ValueError(f"d_sae={self.d_sae} must be at least 1: it is the number of latents.")
        if self.score not in SCORES:
            raise ValueError(f"score={self.score!r} is not one of {SCORES}; the paper's crosscoder uses 'sum'.")
        if self.apply_b_dec_to_input:
            raise ValueError(
                "apply_b_dec_to_input=True is not a crosscoder: its encoder reads the raw activations. Leave it False."
            )
        if self.normalize_activations not in HOST_NORMALISERS:
            raise ValueError(
                f"normalize_activations={self.normalize_activations!r} mixes the models' coordinates, so decoder "
                "norms per model would mean nothing. Use 'none', with activation_scaling='per_model' when one "
                "model has larger activations."
            )
        if self.reshape_activations != "none":
            raise ValueError(
                f"reshape_activations={self.reshape_activations!r} would interleave the models' heads: use a hook "
                "on the residual stream, an MLP output or an attention output, and leave it 'none'."
            )
        scales = self.activation_scales
        if scales is not None and (len(scales) != self.layout.n_sources or not all(scale > 0 for scale in scales)):
            raise ValueError(
                f"activation_scales={scales} must have one positive factor for each of {self.layout.n_sources} sources."
            )

    @classmethod
    @override
    def from_dict(cls, config_dict: dict[str, Any]) -> Any:
        """As SAELens's, except that an unknown key is an error instead of being dropped, and so is a missing d_sae."""
        validate_known_keys(config_dict, cls)
        if "d_sae" not in config_dict:
            raise ValueError("The crosscoder's config has no d_sae. Add the number of latents.")
        return super().from_dict(config_dict)


def resolve_widths(d_model: int | None, d_models: Any, d_in: int, n_hooks: int = 1) -> tuple[int, ...]:
    """The sources' widths from whichever of the three fields were given; without `d_models`, of two models.

    >>> resolve_widths(None, None, 128), resolve_widths(64, None, 0), resolve_widths(None, [64, 48], 112)
    ((64, 64), (64, 64), (64, 48))
    """
    if d_models is not None:
        widths = tuple(int(width) for width in d_models)
    elif d_model is not None:
        widths = 2 * n_hooks * (d_model,)
    elif d_in > 0 and d_in % 2 == 0 and n_hooks == 1:
        widths = (d_in // 2, d_in // 2)
    elif d_in > 0 and n_hooks > 1:
        raise ValueError(f"d_in={d_in} does not say how wide each of the sources is: set d_models or d_model instead.")
    elif d_in > 0:
        raise ValueError(
            f"d_in={d_in} is odd, so the two models have different widths: set d_models=(base, chat) instead."
        )
    else:
        raise ValueError("The models' widths are missing: give d_model=2304 (two models of that width) or d_models.")
    if d_in and sum(widths) != d_in:
        raise ValueError(
            f"The widths do not add up: d_in={d_in}, but d_models={widths} sum to {sum(widths)}. Leave d_in out."
        )
    if d_model is not None and set(widths) != {d_model}:
        raise ValueError(f"d_model={d_model} disagrees with d_models={widths}. Give only one of the two.")
    return widths


def validate_known_keys(config_dict: Mapping[str, Any], cls: type) -> None:
    """Raise a ValueError for a key that `cls` has no field for, naming the nearest field."""
    known = {known_field.name for known_field in fields(cls)} | {"architecture", *_HOST_KEYS}
    for key in config_dict:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{cls.__name__} has no field {key!r}.{hint} Fields: {', '.join(sorted(known))}.")


def validate_metadata(metadata: Any) -> None:
    """Raise a ValueError if a config's metadata, as read from JSON, is not what SAELens can hold."""
    if not isinstance(metadata, dict):
        raise ValueError(f"metadata={metadata!r:.80} must be an object.")
    reserved = [name for name in metadata if name == "self" or hasattr(SAEMetadata, name)]
    if reserved:
        raise ValueError(f"metadata has reserved names: {printable_names(reserved)}.")
    for name in _METADATA_NAMES:
        if not isinstance(metadata.get(name), str | None):
            raise ValueError(f"metadata.{name}={metadata[name]!r:.80} must be a string.")
    if not isinstance(metadata.get("training_architecture_details"), dict | None):
        raise ValueError("metadata.training_architecture_details must be an object.")
    max_norms, ratio = metadata.get("max_norms"), metadata.get("max_norm_ratio")
    if not matches_type(max_norms, list[float] | None) or not matches_type(ratio, float | None):
        raise ValueError(
            f"metadata.max_norms={max_norms!r:.80} must be a list of numbers, max_norm_ratio={ratio!r:.80} a number."
        )
