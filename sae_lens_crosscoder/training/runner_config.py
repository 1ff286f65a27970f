"""A SAELens runner config for a pair of models."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import simple_parsing
from sae_lens import LanguageModelSAERunnerConfig, LoggingConfig, TrainingSAEConfig
from sae_lens.config import dict_field
from typing_extensions import override

from sae_lens_crosscoder.activations.dominant_tokens import MAX_NORM_RATIO
from sae_lens_crosscoder.crosscoders.config import validate_known_keys
from sae_lens_crosscoder.data.packing import PackingRule
from sae_lens_crosscoder.storage.field_types import (
    float_or_none,
    validate_config,
    validate_field_types,
    validate_minimums,
)
from sae_lens_crosscoder.storage.names import validate_folder_name
from sae_lens_crosscoder.storage.secrets import validate_no_secrets
from sae_lens_crosscoder.training.data.mix_settings import mix_from
from sae_lens_crosscoder.training.devices import same_device
from sae_lens_crosscoder.training.nested_configs import crosscoder_config, logging_config
from sae_lens_crosscoder.training.several_hooks import DEFAULT_HOOK_NAME, set_hook_per_model, set_several_hooks
from sae_lens_crosscoder.training.trainer_config import CrosscoderTrainerConfig, default_dead_feature_window
from sae_lens_crosscoder.training.validation import validate_data, validate_dtype, validated_slice

_BATCHES_IN_BUFFER = 16


@dataclass
class CrosscoderRunnerConfig(LanguageModelSAERunnerConfig[Any]):
    """SAELens's runner config plus the pair; every field of SAELens's keeps its meaning, defaults are the paper's.

    Give one crosscoder as `sae`, or several by name as `saes`: they train on one stream of activations, for one pair of
    forward passes.
    """

    sae: Any = None
    """The crosscoder to train, a training config."""
    saes: dict[str, TrainingSAEConfig] | None = None
    """Instead of `sae`: several crosscoders by name."""
    model_name: str = "google/gemma-2-2b"
    """The base model: a Hub name, a local folder, or a built-in one such as `tiny-base`."""
    chat_model_name: str | None = "google/gemma-2-2b-it"
    """The chat model, tuned from the base model; None for a crosscoder of one model, `model_name`, at several hooks."""
    more_model_names: list[str] | None = simple_parsing.field(default=None, type=str, nargs="+")
    """Further models to stack after the chat model, such as later checkpoints or other fine-tunes. Tokenizer and chat
    template are the last one's."""
    chat_device: str | None = None
    """Device of the chat model and all further ones; None for the base model's device (`llm_device`)."""
    model_dtype: str = "float32"
    """Precision of the two language models (not of the crosscoder)."""
    token_replacements: dict[str, str] = dict_field({})
    """Replacements of chat control tokens for the base model; see `slc.models.TOKEN_REPLACEMENTS`."""
    align_tokens: bool = False
    """Let the models have different tokenizers: all read one text, and tokens that end at the same character are
    paired. The tokens of the data are the last model's."""
    hook_name: str = DEFAULT_HOOK_NAME
    hook_names: list[str] | None = simple_parsing.field(default=None, type=str, nargs="+")
    """Instead of `hook_name`: several hooks, in the order of the stack, at which every model is read in one forward
    pass. Every crosscoder gets a source for each model and hook; give its `d_model`, or `d_models` of all sources."""
    model_hook_names: list[str] | None = simple_parsing.field(default=None, type=str, nargs="+")
    """Instead of `hook_name`: one hook per model, in the order of the stack, for models of different depth."""
    mix: Any = simple_parsing.field(default=None, type=mix_from)
    """Instead of `dataset_path`: a `DataMix` of several sources of text and conversations. On the command line, and
    wherever a mix is read, JSON of its fields, or the name of a JSON file."""
    answers_path: str | None = None
    """Folder for the answers that the models give to sources of the kind `answers`, which later runs read again; None
    for a folder `answers` beside the checkpoints."""
    exclude_constant_prefix: bool | None = None
    """True to leave out the tokens that the chat template writes before a user's first words, such as a fixed system
    prompt, whose activations are the same in every chat. None: with sources of the kind `answers` only."""
    use_cached_activations: bool = False
    """Train on the activations that `cache` wrote to `cached_activations_path`, without the language models."""
    wait_for_cache: float | int = 0
    """Seconds to wait for each file that `cache` is still writing; 0 for a complete cache. When training waits, the
    first pass reads the shards in their order."""
    packing: PackingRule = "concatenated"
    """`concatenated`: documents follow one another, as SAELens packs them, and are cut where a context ends; attention
    reaches from one into those before it in the context, and so do windows around a token. `one_document`: a context
    holds one document, cut off where it ends, or padded; padding is left out of everything."""
    padding_token: int | None = None
    """Id of the padding, which no document may hold; None for the tokenizer's own."""
    context_size: int = 1024
    training_tokens: int = 100_000_000
    train_batch_size_tokens: int = 2048
    n_batches_in_buffer: int = 0
    """Contexts in the shuffling buffer; 0 for as many as fill 16 training batches."""
    max_norm_ratio: float | None = simple_parsing.field(default=MAX_NORM_RATIO, type=float_or_none)
    """Tokens whose norm exceeds this many times the median norm of any model are left out. None keeps all tokens."""
    dtype: str = "float32"
    """Precision of the activations in the shuffling buffer; `bfloat16` halves it. The crosscoder's is `sae.dtype`."""
    prefetch_llm_batches: bool | int | None = None
    """Batches made ahead in a background thread. None: one if a language model has another device, otherwise none."""
    lr: float = 1e-4
    lr_warm_up_steps: int = 1000
    dead_feature_window: int = 0
    """Steps without being selected after which a latent is dead; 0 for the paper's 10 million tokens."""
    latent_shards: int = 1
    """Shards of the latents, one per process of those that `torchrun` starts; the other factor divides every batch."""
    n_held_out_rows: int = 256
    """Rows (documents) at the start of each source that are kept out of training, for diagnosis and evaluation."""
    n_checkpoints_kept: int | None = None
    """Number of checkpoints to keep; older ones are deleted once a newer one is complete. None keeps all."""
    log_frequency: int = 100
    """Steps between two rows of metrics."""
    logger: LoggingConfig = field(default_factory=lambda: LoggingConfig(log_to_wandb=False))
    model_from_pretrained_kwargs: dict[str, Any] | None = field(default_factory=dict)
    dataset_trust_remote_code: bool = False
    """Must stay False: datasets that need their own code are not run."""
    verbose: bool = False

    @override
    def __post_init__(self) -> None:
        validate_config(self)
        set_hook_per_model(self)
        set_several_hooks(self)
        if (self.sae is None) == (self.saes is None):
            raise ValueError("Pass exactly one of `sae` (one crosscoder) and `saes` (several by name).")
        given: Any = {"": self.sae} if self.saes is None else self.saes
        for name, cfg in given.items():
            if not isinstance(cfg, TrainingSAEConfig):
                raise ValueError(f"sae{name and f's[{name!r}]'}={cfg!r:.80} must be the config of a crosscoder.")
        if self.saes is not None:
            if not self.saes:
                raise ValueError("saes is empty: name at least one crosscoder.")
            for name in self.saes:
                validate_folder_name(name, "saes")
            # SAELens's own code reads cfg.sae for the stacked width and the run's name.
            self.sae = next(iter(self.saes.values()))
        self.mix = mix_from(self.mix)
        self.logger = logging_config(self.logger)
        self.seqpos_slice = validated_slice(self.seqpos_slice, self.context_size)
        validate_data(self)
        self._validate_settings()
        if self.prefetch_llm_batches is None:
            self.prefetch_llm_batches = self._has_a_device_for_the_models  # pyright: ignore[reportIncompatibleVariableOverride]
        super().__post_init__()
        validate_no_secrets(self.to_dict())

    @property
    def model_names(self) -> tuple[str, ...]:
        """The models that the crosscoders read, base first."""
        chat = () if self.chat_model_name is None else (self.chat_model_name, *(self.more_model_names or ()))
        return (self.model_name, *chat)

    @property
    def _has_a_device_for_the_models(self) -> bool:
        base_device = self.llm_device or self.device
        devices = (base_device, self.chat_device or base_device)[: len(self.model_names)]
        return not all(same_device(device, self.device) for device in devices)

    def _validate_settings(self) -> None:
        validate_minimums(self, training_tokens=1, train_batch_size_tokens=1, context_size=1)
        validate_minimums(self, store_batch_size_prompts=1, n_eval_batches=1, eval_batch_size_prompts=1)
        validate_dtype("dtype", self.dtype)
        validate_dtype("model_dtype", self.model_dtype)
        if self.dataset_trust_remote_code:
            raise ValueError("dataset_trust_remote_code=True would run a dataset's own code; it is not supported.")
        if self.compile_llm or self.compile_sae:
            raise ValueError("compile_llm and compile_sae are not supported for a pair: leave them False.")
        if self.hook_head_index is not None:
            raise ValueError(f"hook_head_index={self.hook_head_index}: a pair has no heads to choose from.")
        if not self.wait_for_cache >= 0:
            raise ValueError(f"wait_for_cache={self.wait_for_cache} must be a number of seconds, or 0 to not wait.")
        if self.n_held_out_rows < 1:
            raise ValueError(f"n_held_out_rows={self.n_held_out_rows} must be at least 1: diagnosis needs unseen data.")
        if self.dead_feature_window == 0:
            self.dead_feature_window = default_dead_feature_window(self.train_batch_size_tokens)
        needed = math.ceil(self.train_batch_size_tokens / self.context_size)
        if self.n_batches_in_buffer == 0:
            self.n_batches_in_buffer = _BATCHES_IN_BUFFER * needed
        if self.n_batches_in_buffer < needed:
            raise ValueError(
                f"n_batches_in_buffer={self.n_batches_in_buffer} contexts of {self.context_size} tokens do not fill "
                f"one training batch of {self.train_batch_size_tokens}: use at least {needed}, or leave it out."
            )
        widths = {name: getattr(cfg, "d_models", None) for name, cfg in self.crosscoder_configs.items()}
        if None in widths.values():
            raise ValueError(f"Only crosscoder configs can be trained here, but d_models is missing in {widths}.")
        if len(set(widths.values())) > 1:
            raise ValueError(f"Crosscoders on one stream must have the same widths, not {widths}.")
        for name, cfg in self.crosscoder_configs.items():
            if self.latent_shards < 1 or cfg.d_sae % self.latent_shards:
                raise ValueError(
                    f"latent_shards={self.latent_shards} must divide d_sae={cfg.d_sae} of crosscoder {name!r}: all "
                    "processes hold equally many latents."
                )
        trainer_cfg = self.to_sae_trainer_config()  # checks the schedule and max_norm_ratio
        configs: list[Any] = list(self.crosscoder_configs.values())  # all crosscoders', as checked above
        for cfg in configs:
            cfg.validate_run(trainer_cfg.total_training_steps, self.train_batch_size_tokens)

    def share_of_stream(self, n_processes: int) -> "CrosscoderRunnerConfig":
        """Return one process's share of the run: an n-th of every batch and of the buffer."""
        if self.train_batch_size_tokens % n_processes:
            raise ValueError(
                f"train_batch_size_tokens={self.train_batch_size_tokens} cannot be divided among {n_processes} "
                "processes: use a multiple of their number."
            )
        return self.replace(
            train_batch_size_tokens=self.train_batch_size_tokens // n_processes,
            n_batches_in_buffer=math.ceil(self.n_batches_in_buffer / n_processes),  # still at least a batch
        )

    def replace(self, **changes: Any) -> "CrosscoderRunnerConfig":
        """Return a config with other values in some fields, its own or those of all its crosscoders.

        >>> sae = TrainingSAEConfig.from_dict({"architecture": "crosscoder", "d_model": 8, "d_sae": 16})
        >>> cfg = CrosscoderRunnerConfig(sae=sae, training_tokens=2**22).replace(lr=1e-3, d_sae=32)
        >>> cfg.lr, cfg.sae.d_sae
        (0.001, 32)
        """
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.init}
        of_crosscoders = {name: value for name, value in changes.items() if name not in values}
        if changes.get("saes", self.saes) is not None:
            values["sae"] = None  # the constructor sets it to the first of `saes`
        if of_crosscoders:
            saes = {name: dataclasses.replace(sae, **of_crosscoders) for name, sae in self.crosscoder_configs.items()}
            values |= {"sae": saes[""]} if self.saes is None else {"saes": saes}
        return self._with_values(values | {name: value for name, value in changes.items() if name in values})

    @property
    def crosscoder_configs(self) -> dict[str, TrainingSAEConfig]:
        """Every crosscoder by name; a lone one has the empty name."""
        if self.saes is not None:
            return self.saes
        assert self.sae is not None
        return {"": self.sae}

    @override
    def to_sae_trainer_config(self) -> CrosscoderTrainerConfig:
        host = super().to_sae_trainer_config()
        return CrosscoderTrainerConfig(
            **vars(host),
            log_frequency=self.log_frequency,
            max_norm_ratio=self.max_norm_ratio,
            n_checkpoints_kept=self.n_checkpoints_kept,
            resume_from_checkpoint=self.resume_from_checkpoint,
        )

    @override
    def to_dict(self) -> dict[str, Any]:
        saes = None if self.saes is None else {name: cfg.to_dict() for name, cfg in self.saes.items()}
        return {**super().to_dict(), "saes": saes}

    @classmethod
    @override
    def from_dict(cls, cfg_dict: dict[str, Any]) -> "CrosscoderRunnerConfig":
        """Build a config from what `to_dict` returned; an unknown key or a wrong type is an error."""
        cfg_dict = {key: value for key, value in cfg_dict.items() if key != "tokens_per_buffer"}
        validate_known_keys(cfg_dict, cls)
        validate_field_types(cls, cfg_dict)
        saes: Mapping[str, Any] | None = cfg_dict.get("saes")
        if saes is not None:
            cfg_dict["saes"] = {name: crosscoder_config(cfg) for name, cfg in saes.items()}
            cfg_dict["sae"] = None
        elif cfg_dict.get("sae") is not None:
            cfg_dict["sae"] = crosscoder_config(cfg_dict["sae"])
        if "seqpos_slice" in cfg_dict:
            cfg_dict["seqpos_slice"] = tuple(cfg_dict["seqpos_slice"])  # JSON has no tuples
        if "logger" in cfg_dict:
            cfg_dict["logger"] = logging_config(cfg_dict["logger"])
        return cls._with_values(cfg_dict)

    @classmethod
    def _with_values(cls, values: dict[str, Any]) -> "CrosscoderRunnerConfig":
        """Construct a config without the random id that SAELens's constructor appends to `checkpoint_path`."""
        cfg = cls(**values)
        cfg.checkpoint_path = values.get("checkpoint_path", cfg.checkpoint_path)
        return cfg
