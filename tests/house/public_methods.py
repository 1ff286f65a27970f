"""One call of every public method, on a small pair of models, from which the odd ones are made."""

import inspect
from functools import partial
from typing import Any

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.analysis.audit.result import Limits
from tests.house.public_calls import IDS, NEGATIVE, POSITIVE, World, energies, fitted, functions_and_classes

A = slc.analysis
CHANGE = A.PhraseChange(("^", "so"), "chat", (1,), 1, 0, 2, 0.5)
AUDIT = A.Audit(
    findings=(),
    answers_only=(),
    in_control=(),
    not_found=(),
    limits=Limits(n_prompts=4, n_held_out=2, least_frequency=0.5),
    manifest={},
)
# The method, bound or of its class, and the arguments of one call.
METHODS = {
    "ActivationCache.shuffled": lambda w: (cache(w).shuffled, dict(batch_size=4, n_passes=1)),
    "ActivationCache.validate_source": lambda w: (
        cache(w).validate_source,
        dict(model_names=("tiny-base", "tiny-chat"), hook_name=w.hook),
    ),
    "ActivationCache.parts": lambda w: (cache(w).parts, dict(shard=0)),
    "Audit.save": lambda w: (AUDIT.save, dict(folder=w.folder / "audit")),
    "Behaviour.beginning": lambda w: (A.Behaviour((CHANGE,)).beginning, dict(answer="so it is")),
    "Behaviour.is_in": lambda w: (A.Behaviour((CHANGE,)).is_in, dict(answer="so it is")),
    "PhraseChange.beginning": lambda w: (CHANGE.beginning, dict(answer="so it is")),
    "PhraseChange.is_in": lambda w: (CHANGE.is_in, dict(answer="so it is")),
    "Contrast.from_texts": lambda w: (
        slc.data.Contrast.from_texts,
        dict(name="burns", positive=POSITIVE, negative=NEGATIVE, tokenizer=w.pair.tokenizer),
    ),
    "Contrast.from_tokens": lambda w: (
        slc.data.Contrast.from_tokens,
        dict(name="burns", positive=[[5, 6], [7, 8]] * 2, negative=[[5, 9], [7, 9]] * 2),
    ),
    "Contrast.from_chats": lambda w: (
        slc.data.Contrast.from_chats,
        dict(name="burns", positive=POSITIVE, negative=NEGATIVE, tokenizer=w.pair.tokenizer),
    ),
    "ContrastRows.part": lambda w: (contrast_rows(w).part, dict(held_out=False)),
    "DifferenceDirections.activations": lambda w: (directions(w).activations, dict(difference=w.rows.difference)),
    "DifferenceDirections.contrast_shares": lambda w: (
        directions(w).contrast_shares,
        dict(positive=w.rows.difference[:4], negative=w.rows.difference[4:9]),
    ),
    "DifferenceRows.group": lambda w: (w.rows.group, dict(name="odd")),
    "EvalData.with_groups": lambda w: (w.data.with_groups, dict(groups=None)),
    "EvalData.keep_activations": lambda w: (w.data.keep_activations, dict(hook_name=w.hook)),
    "HookedModelPair.activations": lambda w: (w.pair.activations, dict(tokens=w.tokens, hook_name=w.hook)),
    "HookedModelPair.forward": lambda w: (w.pair.forward, dict(tokens=w.tokens)),
    "HookedModelPair.layout_at": lambda w: (w.pair.layout_at, dict(hook_name=w.hook)),
    "HookedModelPair.run_with_cache": lambda w: (
        w.pair.run_with_cache,
        dict(tokens=w.tokens, names_filter=w.hook),
    ),
    "HookedModelPair.of": lambda w: (w.pair.of, dict(first="tiny-chat", second="tiny-base")),
    "InferenceCrosscoder.encode_sparse": lambda w: (w.crosscoder.encode_sparse, dict(x=w.stacked)),
    "InferenceCrosscoder.norm_limits": lambda w: (w.crosscoder.norm_limits, dict(max_norm_ratio=10.0)),
    "InferenceCrosscoder.save_model": lambda w: (w.crosscoder.save_model, dict(path=w.folder / "saved")),
    "InferenceCrosscoder.with_activation_scales": lambda w: (
        w.crosscoder.with_activation_scales,
        dict(scales=[1.0, 2.0]),
    ),
    "Intervention.deltas": lambda w: (intervention(w).deltas, dict(stacked=w.stacked)),
    "Intervention.feature_acts": lambda w: (intervention(w).feature_acts, dict(stacked=w.stacked)),
    "LatentRecord.fires_on": lambda w: (w.exploration[1].fires_on, dict(n=2)),
    "LatentRecord.writes": lambda w: (w.exploration[1].writes, dict(n=2)),
    "LatentScaling.add": lambda w: (
        A.LatentScaling(w.crosscoder).add,
        dict(
            activations=w.stacked,
            feature_acts=w.crosscoder.encode_sparse(w.stacked).to_dense(),
            reconstruction=w.crosscoder.decode(w.crosscoder.encode_sparse(w.stacked)),
        ),
    ),
    "LatentScaling.beta": lambda w: (fitted(w, 20).beta, dict(target="error", model=0)),
    "LatentScaling.nu": lambda w: (fitted(w, 20).nu, dict(target="error")),
    "LatentScaling.nu_interval": lambda w: (fitted(w, 20).nu_interval, dict(target="error", n_resamples=5)),
    "LayeredWorld.sample": lambda w: (slc.synthetic.LayeredWorld(2, 2, 8).sample, dict(n_tokens=5, seed=0)),
    "NullPair.activations": lambda w: (
        slc.workflows.null_family(w.pair, n_per_kind=1).pairs[0].activations,
        dict(tokens=w.tokens, hook_name=w.hook),
    ),
    "PlantedWorld.firing_probability": lambda w: (w.planted.firing_probability, dict(index=0)),
    "PlantedWorld.indices": lambda w: (w.planted.indices, dict(kind="shared")),
    "PlantedWorld.of": lambda w: (w.planted.of, dict(first=1, second=0)),
    "PlantedWorld.sample": lambda w: (w.planted.sample, dict(n_tokens=5, seed=0)),
    "TargetEnergies.add": lambda w: (energies(w).add, dict(activations=w.stacked, reconstruction=w.stacked)),
    "WeightDiagnosis.of": lambda w: (slc.analysis.diagnose_weights(w.crosscoder).of, dict(name="chat")),
    "TokenGroups.drop_first_n": lambda w: (w.data.groups.drop_first_n, dict(n=1)),
    **{
        f"{cls.__name__}.{name}": lambda w, cls=cls, name=name: (saver(w, cls, name), dict(folder=w.folder / "saved"))
        for cls in (slc.Diagnosis, A.DifferenceDirections, A.DictionaryComparison, A.LatentUse, A.WeightDiagnosis)
        for name in ("save", "load")
    },
}
# Methods that SAELens calls on what it trains or evaluates, that take nothing, or that load, ask or train.
NOT_CALLED = {
    *("Training", "Config", "Client", "Answers", "Runner", "Store", "Trainer", "Recipe", "JumpReLU", "DataMix"),
    *("Changed", "FirstLook", "Ladder", "Interpretations", "EffectSums", "MeanNorms", "Setup", "Recommendation"),
    *(
        "from_pretrained",
        "to_tokens",
        "HookedModelPair.validate",
        "validate_read_from",
        "encoding",
        "NullFamily",
        "role",
    ),
}


def cache(w: World) -> Any:
    tokens = w.tokens[:3]
    return slc.cache_activations(w.folder / "cache-of-methods", w.pair, tokens, w.hook, prompts_per_shard=2)


def contrast_rows(w: World) -> Any:
    return slc.activations.contrast_rows(w.pair, w.contrast, w.hook)


def directions(w: World) -> Any:
    return A.difference_pca(w.rows, n_components=2)


def intervention(w: World) -> Any:
    return slc.causal.intervention(w.crosscoder, IDS, how="ablate")


def saver(w: World, cls: Any, name: str) -> Any:
    """`save` of a result, or `load` of what it saved."""
    results = {
        "Diagnosis": lambda: w.diagnosis,
        "DifferenceDirections": lambda: directions(w),
        "DictionaryComparison": lambda: A.compare_dictionaries(w.crosscoder, w.crosscoder),
        "WeightDiagnosis": lambda: A.diagnose_weights(w.crosscoder),
        "LatentUse": lambda: slc.latent_use(w.crosscoder, w.data, min_active=1),
    }
    result = results[cls.__name__]()
    if name == "save":
        return result.save
    result.save(w.folder / "saved")
    return cls.load


def methods() -> dict[str, Any]:
    """Public methods that take arguments, of public classes, by name."""
    found: dict[str, Any] = {}
    for cls in filter(inspect.isclass, functions_and_classes().values()):
        for name, value in vars(cls).items():
            is_method = inspect.isfunction(value) or isinstance(value, classmethod | staticmethod)
            takes = is_method and [each for each in inspect.signature(getattr(cls, name)).parameters if each != "self"]
            if takes and not name.startswith("_"):
                found[f"{cls.__name__}.{name}"] = partial(getattr, cls, name)
    return found
