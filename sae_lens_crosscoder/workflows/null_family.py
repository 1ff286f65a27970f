"""null_family: pairs of models that do not differ, made from a pair, and crosscoders trained on them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Int
from torch import Tensor
from tqdm.auto import tqdm

from sae_lens_crosscoder.activations.drawn_batches import DrawnBatches
from sae_lens_crosscoder.activations.eval_data import EvalData
from sae_lens_crosscoder.analysis.diagnosis.diagnose import diagnose
from sae_lens_crosscoder.analysis.diagnosis.diagnosis import Diagnosis
from sae_lens_crosscoder.analysis.diagnosis.verdict import MIN_ACTIVE
from sae_lens_crosscoder.analysis.use.latent_use import latent_use
from sae_lens_crosscoder.analysis.use.result import LatentUse
from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.crosscoders.compared import validate_two_models
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder, hook_name_of, validate_inference
from sae_lens_crosscoder.models.pair import HookedModelPair
from sae_lens_crosscoder.stacking import hook_of_model
from sae_lens_crosscoder.training.recipe import TrainingRecipe
from sae_lens_crosscoder.workflows.null_pairs import KINDS, NullPair, NullPairMaker


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
            ValueError: for data without tokens, or a crosscoder of other widths than the null pairs, or without a
                recipe.
        """
        crosscoder = validate_inference(crosscoder, "null_family")
        validate_two_models(crosscoder, "null_family")
        hook_names = [hook_of_model(hook_name_of(crosscoder), null.model) for null in self.pairs]
        for null, hook_name in zip(self.pairs, hook_names, strict=True):
            if (widths := null.pair.layout_at(hook_name).d_models) != crosscoder.layout.d_models:
                raise ValueError(
                    f"The null pair {null.kind!r} has widths {widths}, but the crosscoder reads "
                    f"{crosscoder.layout.d_models}. Null pairs are for models of one width."
                )
        tokens, token_mask = data.contexts
        recipe = recipe or TrainingRecipe.of(crosscoder, str(crosscoder.W_dec.device))
        uses: list[LatentUse] = []
        diagnoses: list[Diagnosis] = []
        nulls = zip(self.pairs, hook_names, strict=True)
        for null, hook_name in tqdm(nulls, desc="Null runs", total=len(self.pairs), leave=False):
            rows = null.activations(train_tokens, hook_name, batch_size=data.batch_size)
            batches = DrawnBatches(rows, recipe.trainer.train_batch_size_samples, null.seed)
            trained = recipe.train(batches, seed=null.seed)
            names = null.pair.model_names or ("base", "base again")
            trained.cfg.metadata.model_name, trained.cfg.metadata.chat_model_name = names
            trained.cfg.metadata.hook_name, trained.cfg.metadata.null_kind = hook_name, null.kind
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
    halves: Sequence[str] | None = None,
    adapter: str | Path | None = None,
    seed: int = 0,
) -> NullFamily:
    """Make pairs of models that do not differ from what there is: the base model, its text, models trained alike.

    Args:
        pair: its first model is used, and `halves`.
        kinds: `jittered`: the base model beside itself with noise on its weights. `shuffled`: its activations beside
            those of other tokens. `other_text`: base on one half of the tokens beside base on the other. The latter two
            have nothing in common on a token, so they are nulls for `latent_use` alone. `split_halves`: two models that
            were trained alike, with other seeds or on other halves of the data. `neutral_adapter`: base beside base
            with an adapter that was trained on neutral text, which is loaded again with one more copy of base.
        n_per_kind: pairs of each kind, which differ in their seeds; of the latter two kinds, only in the training of
            the crosscoders.
        jitter: standard deviation of the noise on every weight tensor, relative to its root mean square.
        halves: for `split_halves`, the names of two models of a pair of three or more.
        adapter: for `neutral_adapter`, a folder or Hub id.
        seed: of the first pair of each kind.

    Raises:
        ValueError: for an unknown kind, one that the models do not allow, options without their kind, no pairs, a
            jitter outside (0, 1), or models with different tokenizers.

    >>> pair = HookedModelPair.from_pretrained("tiny-base", "tiny-chat")
    >>> [(null.kind, null.seed) for null in null_family(pair, ["jittered", "shuffled"], n_per_kind=1).pairs]
    [('jittered', 0), ('shuffled', 0)]
    """
    pair.validate_one_tokenizer("null_family")
    if unknown := sorted(set(kinds) - set(KINDS)):
        raise ValueError(f"kinds={list(kinds)} contains {unknown[0]!r}. Choose from {', '.join(KINDS)}.")
    if n_per_kind < 1 or not kinds:
        raise ValueError(f"kinds={list(kinds)} with n_per_kind={n_per_kind} make no null pair. Ask for at least one.")
    if not 0 < jitter < 1:
        raise ValueError(f"jitter={jitter} must be between 0 and 1, such as 0.02: it is relative to the weights.")
    for kind, name, value in (("split_halves", "halves", halves), ("neutral_adapter", "adapter", adapter)):
        if value is not None and kind not in kinds:
            raise ValueError(
                f"{name}={value!r} goes with the kind {kind!r}, but kinds={list(kinds)}. Add it, or leave it out."
            )
    maker, seeds = NullPairMaker(pair, jitter, halves, adapter), range(seed, seed + n_per_kind)
    return NullFamily(tuple(null for kind in KINDS if kind in kinds for null in maker.make(kind, seeds)))
