"""Load saved crosscoders, this package's and other people's, from a folder or the Hub."""

from pathlib import Path
from typing import Any

from sae_lens import SAE
from sae_lens.constants import SAE_WEIGHTS_FILENAME
from sae_lens.util import str_to_dtype
from torch import Tensor

from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder, validate_inference
from sae_lens_crosscoder.loading.files import WEIGHTS_NAMES, find_weights, load_foreign_file
from sae_lens_crosscoder.loading.formats.crosscode import TENSORS as CROSSCODE_TENSORS
from sae_lens_crosscoder.loading.formats.crosscode import convert_crosscode
from sae_lens_crosscoder.loading.formats.dictionary_learning import MAIN_TENSORS, convert_dictionary_learning
from sae_lens_crosscoder.loading.formats.foreign import (
    ForeignFile,
    ForeignFormat,
    ForeignOptions,
    canonical_state,
    warn_of_assumptions,
)
from sae_lens_crosscoder.loading.formats.kissane import convert_kissane
from sae_lens_crosscoder.loading.hub import download
from sae_lens_crosscoder.loading.own import load_own
from sae_lens_crosscoder.storage.names import printable_names

CONVERTERS = {
    "dictionary_learning": convert_dictionary_learning,
    "kissane": convert_kissane,
    "crosscode": convert_crosscode,
}


def load(
    source: str | Path,
    device: str = "cpu",
    dtype: str | None = None,
    *,
    format: ForeignFormat | None = None,
    hook_name: str | None = None,
    model_names: tuple[str, str] | None = None,
    dropped_tokens: str | None = None,
    activation_scales: tuple[float, float] | None = None,
    theta: float | None = None,
    allow_relu: bool = False,
) -> InferenceCrosscoder:
    """Load an inference crosscoder in canonical form, from this package's layout or a published one.

    Published files are recognised by their tensors: those of `dictionary_learning` (the paper's authors), of Kissane et
    al. (`cc_weights.pt`), of crosscode and Neel Nanda's script. They leave some settings open. Settings that the
    keyword arguments do not give are assumed, listed in one warning, and kept in `cfg.metadata.assumptions`.

    Args:
        source: a folder, a weights file, or a Hub id: `owner/name`, `owner/name/folder` or `owner/name/folder/file`.
        format: `dictionary_learning`, `kissane` or `crosscode`; by default recognised.
        hook_name: the hook that the activations were read at; by default blocks.13.hook_resid_post for
            `dictionary_learning` (the paper's layer 13), blocks.14.hook_resid_pre, the same place, for the others.
        model_names: base and chat; by default google/gemma-2-2b and google/gemma-2-2b-it.
        dropped_tokens: a description of the tokens left out of training; by default none for `dictionary_learning`,
            BOS for the others.
        activation_scales: factors by which each model's activations were multiplied in training, for a file without
            them; by default 0.2759 and 0.2442 for `kissane`, otherwise 1. They are folded into the weights; (1, 1)
            leaves the weights as they are.
        theta: the threshold on scores under the file's own norm, in place of the file's.
        allow_relu: load a BatchTopK crosscoder without an estimated threshold as a ReLU crosscoder.

    Raises:
        ValueError: if there is no crosscoder, or a training checkpoint, or another kind of SAE; for unknown config keys
            (nothing is dropped silently); and for a file that a converter refuses.
    """
    path = Path(source) if Path(source).exists() else download(str(source))
    options = ForeignOptions(
        format=format,
        hook_name=hook_name,
        model_names=model_names,
        dropped_tokens=dropped_tokens,
        activation_scales=activation_scales,
        theta=theta,
        allow_relu=allow_relu,
    )

    def converter(path: str | Path, device: str, cfg_overrides: dict[str, Any] | None) -> Any:
        return _load(Path(path), device, cfg_overrides, options)

    return validate_inference(SAE.load_from_disk(path, device=device, dtype=dtype, converter=converter), "load")


def crosscoder_huggingface_loader(
    repo_id: str,
    folder_name: str,
    device: str = "cpu",
    force_download: bool = False,
    cfg_overrides: dict[str, Any] | None = None,
    **options: Any,
) -> tuple[dict[str, Any], dict[str, Tensor], None]:
    """Load for SAELens: `SAE.from_pretrained(repo, folder, converter=crosscoder_huggingface_loader)`.

    Args:
        repo_id: a Hub repository, or a local folder.
        folder_name: the folder or file in it; "." for the repository itself.
        options: those of `load`, set with `functools.partial`.
    """
    if Path(folder_name).is_absolute() or ".." in Path(folder_name).parts:
        raise ValueError(f"folder_name={folder_name!r} leads out of {repo_id}: name a folder or file inside it.")
    local = Path(repo_id, folder_name)
    hub_id = repo_id if folder_name in ("", ".") else f"{repo_id}/{folder_name}"
    path = local if local.exists() else download(hub_id, force_download=force_download)
    cfg, state = _load(path, device, cfg_overrides, ForeignOptions(**options))
    return cfg, state, None


def _load(
    path: Path, device: str, cfg_overrides: dict[str, Any] | None, options: ForeignOptions
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Load config and tensors in canonical form, as SAELens's loaders return them."""
    is_ours = path.is_dir() and (path / SAE_WEIGHTS_FILENAME).exists()
    weights_path = None if is_ours else find_weights(path)
    if weights_path is None:
        if options.given:
            raise ValueError(
                f"{', '.join(options.given)} cannot be set for a crosscoder of this package, which records them. "
                f"{path} has no weights of another layout ({', '.join(WEIGHTS_NAMES)})."
            )
        return load_own(path, device, cfg_overrides)
    overrides = cfg_overrides or {}
    file = load_foreign_file(weights_path, str_to_dtype(overrides.get("dtype", "float32")))
    cfg, state = canonical_state(CONVERTERS[options.format or _recognise(file)](file, options), options)
    warn_of_assumptions(cfg, weights_path)
    return {**cfg, "device": device, **overrides}, state


def _recognise(file: ForeignFile) -> ForeignFormat:
    if not file.tensors.keys().isdisjoint(MAIN_TENSORS):
        return "dictionary_learning"
    if not file.tensors.keys().isdisjoint(CROSSCODE_TENSORS):
        # The tensors have the same names, but those of Kissane et al. expect scaled activations.
        return "kissane" if file.path.name == "cc_weights.pt" else "crosscode"
    raise ValueError(
        f"{file.path} has an unknown layout, with the tensors {printable_names(file.tensors) or '(none)'}. Known are "
        f"dictionary_learning ({', '.join(MAIN_TENSORS)}), kissane and crosscode ({', '.join(CROSSCODE_TENSORS)})."
    )
