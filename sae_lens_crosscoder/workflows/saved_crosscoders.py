"""Find saved crosscoders in a folder, and load the pair of models they belong to."""

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from sae_lens.constants import SAE_CFG_FILENAME

from sae_lens_crosscoder.analysis.diagnosis.diagnosis import Diagnosis
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder
from sae_lens_crosscoder.models.pair import HookedModelPair


def crosscoder_folders(path: str | Path) -> dict[str, Path]:
    """Find the crosscoder folder at `path`, or those inside it, by name."""
    path = Path(path)
    if (path / SAE_CFG_FILENAME).exists():
        return {path.resolve().name: path}
    folders = {inner.parent.name: inner.parent for inner in sorted(path.glob(f"*/{SAE_CFG_FILENAME}"), reverse=True)}
    if not folders:
        raise ValueError(
            f"{path} is not a crosscoder folder and contains none: {SAE_CFG_FILENAME} is missing. Pass a folder that "
            "`train` or `demo` wrote."
        )
    return folders


def load_pair(
    crosscoders: Mapping[str, InferenceCrosscoder],
    folder: str,
    model_name: str | None = None,
    chat_model_name: str | None = None,
    model_class_name: str | None = None,
    **options: Any,
) -> HookedModelPair:
    """Load the pair of models that all crosscoders of a folder belong to.

    They must agree on how the models read text: on aligned tokens, and on the tokens that are replaced.

    Args:
        folder: the crosscoders' folder, for error messages.
        model_name, chat_model_name: the models, if they have moved since training.
        model_class_name: by default as in training.
        options: as for `HookedModelPair.from_pretrained`.
    """
    metadatas: list[Any] = [crosscoder.cfg.metadata for crosscoder in crosscoders.values()]
    names = {crosscoder.model_names for crosscoder in crosscoders.values()}
    trained_on = names.pop()
    if names or None in trained_on:
        raise ValueError(
            f"{folder} must contain crosscoders of one named pair of models, not of {[trained_on, *names]}: pass the "
            "folder of one crosscoder."
        )
    for setting in ("align_tokens", "token_replacements"):
        values = {name: getattr(each.cfg.metadata, setting) or None for name, each in crosscoders.items()}
        if any(value != next(iter(values.values())) for value in values.values()):
            raise ValueError(
                f"The crosscoders of {folder} were trained with {setting}={values}, so no one pair has the activations "
                "of all. Pass the folder of one crosscoder."
            )
    known = [name for name in trained_on if name is not None]
    paths = [given or name for given, name in zip_longest((model_name, chat_model_name), known) if given or name]
    for name in paths:
        if Path(name).is_absolute() and not Path(name).is_dir():
            raise ValueError(
                f"The crosscoder was trained on {' and '.join(known)}, but the folder {name} does not exist: pass "
                "model_name and chat_model_name."
            )
    pair = HookedModelPair.from_pretrained(
        *paths,
        model_class_name=model_class_name or metadatas[0].model_class_name or "HookedTransformer",
        token_replacements=metadatas[0].token_replacements,
        align_tokens=bool(metadatas[0].align_tokens),
        **options,
    )
    pair.model_names = tuple(known)  # the names of training, even if the models have moved
    return pair


def load_diagnosis(folder: str | Path, models: Sequence[str]) -> Diagnosis:
    """Load the saved diagnosis of two models, or of the pair if no names are given.

    Raises:
        ValueError: for a family without names, or two models that were not compared.
    """
    diagnosis = Diagnosis.load(folder)
    compared = diagnosis.manifest.get("compared")
    known = {tuple(each.manifest["compared"]): each for each in diagnosis.pairs.values()}
    if compared is not None:
        known[tuple(compared)] = diagnosis
    if not models and not diagnosis.pairs:
        return diagnosis
    if tuple(models) not in known:
        listed = "; ".join(" and ".join(names) for names in known) or "base and chat, without names"
        raise ValueError(
            f"models={list(models)} must be two models that the diagnosis in {folder} compares: {listed}. Name these, "
            "or run sae-lens-crosscoder diagnose with --models."
        )
    return known[tuple(models)]
