"""null_family: pairs of models that do not differ, made from a pair, and crosscoders trained on them."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from sae_lens_crosscoder.activations.drawn_batches import DrawnBatches
from sae_lens_crosscoder.activations.eval_data import EvalData
from sae_lens_crosscoder.activations.harvest import harvest
from sae_lens_crosscoder.analysis.diagnosis.diagnose import diagnose
from sae_lens_crosscoder.analysis.diagnosis.diagnosis import Diagnosis
from sae_lens_crosscoder.analysis.diagnosis.verdict import MIN_ACTIVE
from sae_lens_crosscoder.analysis.use.latent_use import latent_use
from sae_lens_crosscoder.analysis.use.result import LatentUse
from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.crosscoders.compared import validate_two_models
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder, hook_name_of, validate_inference
from sae_lens_crosscoder.models.loading import add_jitter
from sae_lens_crosscoder.models.pair import HookedModelPair
from sae_lens_crosscoder.stacking import hook_of_model
from sae_lens_crosscoder.training.recipe import TrainingRecipe

NullPairKind = Literal["jittered", "shuffled", "other_text"]


@dataclass(frozen=True)
class NullPair:
    """A base model beside itself: what a crosscoder finds to differ is due to chance."""

    kind: NullPairKind
    seed: int
    pair: HookedModelPair

    @property
    def judges_specificity(self) -> bool:
        """True if tokens stay paired, so that latents of the null run may write into both models."""
        return self.kind == "jittered"

    @validate_arguments
    def activations(
        self,
        tokens: Int[Tensor, "batch pos"],
        hook_name: str,
        *,
        token_mask: Bool[Tensor, "batch pos"] | None = None,
        batch_size: int = 32,
    ) -> Float[Tensor, "token d_in"]:
        """Stacked activations at a hook; `other_text` pairs the first half of the tokens with the second.

        Args:
            token_mask: False for tokens to leave out; None for all tokens.
        """
        rows = torch.cat([part.cpu() for part in harvest(self.pair, tokens, hook_name, batch_size, token_mask)])
        layout = self.pair.layout_at(hook_name)
        base, second = layout.split(rows)
        if self.kind == "shuffled":
            order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(self.seed))
            return layout.stack([base, second[order]])
        if self.kind == "other_text":
            half = len(rows) // 2
            return layout.stack([base[:half], second[half : 2 * half]])
        return rows


@dataclass(frozen=True)
class NullRuns:
    """Readings of the crosscoders of a family of null pairs, for `null=`."""

    uses: tuple[LatentUse, ...]
    """For `latent_use`."""
    diagnoses: tuple[Diagnosis, ...]
    """For `diagnose`: of the pairs whose tokens stay paired."""


@dataclass(frozen=True)
class NullFamily:
    """Null pairs, and the training of crosscoders on them."""

    pairs: tuple[NullPair, ...]

    def run(
        self,
        crosscoder: InferenceCrosscoder,
        data: EvalData,
        train_tokens: Int[Tensor, "batch pos"],
        *,
        recipe: TrainingRecipe | None = None,
        min_active: int = MIN_ACTIVE,
    ) -> NullRuns:
        """Train a crosscoder on each null pair as the given one was, and read it as that one is read.

        Each costs a training; activations of all training tokens are held in memory.

        Args:
            crosscoder: the one to judge, which gives the hook and the config.
            data: held-out tokens, as in `diagnose`.
            train_tokens: tokens like those that the crosscoder was trained on.
            recipe: config and schedule of the training; None for the one in the crosscoder's metadata.
            min_active: as in `diagnose`.

        Raises:
            ValueError: for data without tokens, or a crosscoder without a recipe.
        """
        crosscoder = validate_inference(crosscoder, "null_family")
        validate_two_models(crosscoder, "null_family")
        hook_name = hook_of_model(hook_name_of(crosscoder), 0)  # null pairs are made from the base model
        tokens, token_mask = data.contexts
        recipe = recipe or TrainingRecipe.of(crosscoder, str(crosscoder.W_dec.device))
        uses: list[LatentUse] = []
        diagnoses: list[Diagnosis] = []
        for null in tqdm(self.pairs, desc="Null runs", leave=False):
            rows = null.activations(train_tokens, hook_name, batch_size=data.batch_size)
            batches = DrawnBatches(rows, recipe.trainer.train_batch_size_samples, null.seed)
            trained = recipe.train(batches, seed=null.seed)
            names = null.pair.model_names or ("base", "base again")
            trained.cfg.metadata.model_name, trained.cfg.metadata.chat_model_name = names
            trained.cfg.metadata.hook_name = hook_name
            held_out = null.activations(tokens, hook_name, token_mask=token_mask, batch_size=data.batch_size)
            read = EvalData(activations=held_out, max_norm_ratio=data.max_norm_ratio)
            uses.append(latent_use(trained, read, min_active=min_active))
            if null.judges_specificity:
                diagnoses.append(diagnose(trained, read, min_active=min_active))
        return NullRuns(tuple(uses), tuple(diagnoses))


@validate_arguments
def null_family(
    pair: HookedModelPair,
    kinds: Sequence[str] = ("jittered",),
    *,
    n_per_kind: int = 2,
    jitter: float = 0.02,
    seed: int = 0,
) -> NullFamily:
    """Make pairs of models that do not differ from the base model of a pair.

    Args:
        pair: only its first model is used.
        kinds: `jittered`: the model beside itself with noise on its weights. `shuffled`: the model's activations beside
            those of other tokens. `other_text`: the model on one half of the tokens beside itself on the other. The
            latter two have nothing in common on a token, so they are nulls for `latent_use` alone.
        n_per_kind: pairs of each kind, which differ in their seeds.
        jitter: standard deviation of the noise on every weight tensor, relative to its root mean square.
        seed: of the first pair of each kind.

    Raises:
        ValueError: for an unknown kind, no pairs, a jitter outside (0, 1), or models with different tokenizers.

    >>> pair = HookedModelPair.from_pretrained("tiny-base", "tiny-chat")
    >>> [(null.kind, null.seed) for null in null_family(pair, ["jittered", "shuffled"], n_per_kind=1).pairs]
    [('jittered', 0), ('shuffled', 0)]
    """
    pair.validate_one_tokenizer("null_family")
    known: tuple[NullPairKind, ...] = get_args(NullPairKind)
    if unknown := sorted(set(kinds) - set(known)):
        raise ValueError(f"kinds={list(kinds)} contains {unknown[0]!r}. Choose from {', '.join(known)}.")
    if n_per_kind < 1 or not kinds:
        raise ValueError(f"kinds={list(kinds)} with n_per_kind={n_per_kind} make no null pair. Ask for at least one.")
    if not 0 < jitter < 1:
        raise ValueError(f"jitter={jitter} must be between 0 and 1, such as 0.02: it is relative to the weights.")
    name = "base" if pair.model_names is None else pair.model_names[0]
    pairs: list[NullPair] = []
    for kind in known:
        for index in range(n_per_kind if kind in kinds else 0):
            own_seed = seed + index
            second = pair.base
            if kind == "jittered":
                second = add_jitter(copy.deepcopy(pair.base), jitter, own_seed)
            names = (name, f"{name} ({kind}, seed {own_seed})")
            null = HookedModelPair(pair.base, second, model_names=names, tokenizer=pair.tokenizer)
            pairs.append(NullPair(kind, own_seed, null))
    return NullFamily(tuple(pairs))
