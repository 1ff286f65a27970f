"""Reads saved crosscoders, ours and other people's, from a folder or the Hub."""

from pathlib import Path
from typing import Any

from sae_lens import SAE
from sae_lens.constants import SAE_WEIGHTS_FILENAME
from sae_lens.util import str_to_dtype
from torch import Tensor

from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder, require_inference
from sae_lens_crosscoder.loading.files import WEIGHTS_NAMES, find_weights, read_foreign_file
from sae_lens_crosscoder.loading.formats.crosscode import TENSORS as CROSSCODE_TENSORS
from sae_lens_crosscoder.loading.formats.crosscode import read_crosscode, read_kissane
from sae_lens_crosscoder.loading.formats.dictionary_learning import MAIN_TENSORS, read_dictionary_learning
from sae_lens_crosscoder.loading.formats.foreign import (
    ForeignFile,
    ForeignFormat,
    ForeignOptions,
    canonical_state,
    state_assumptions,
)
from sae_lens_crosscoder.loading.hub import download
from sae_lens_crosscoder.loading.own import read_own
from sae_lens_crosscoder.storage.names import printable_names

CONVERTERS = {
    "dictionary_learning": read_dictionary_learning,
    "kissane": read_kissane,
    "crosscode": read_crosscode,
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
    """The inference crosscoder saved at `source`, in canonical form whoever saved it.

    Other people's files are recognised by their tensors: those of `dictionary_learning` (the paper's authors), of
    Kissane et al. (`cc_weights.pt`), of crosscode and Neel Nanda's script. They leave much open; what the keyword
    arguments do not say is assumed, said in one warning, and kept in `cfg.metadata.assumptions`.

    Args:
        source: a folder, one weights file, or a Hub id `owner/name` with an optional folder or file behind it,
            `owner/name/folder`.
        format: `dictionary_learning`, `kissane` or `crosscode`, where recognising is not wanted.
        hook_name: where activations were taken; by default blocks.13.hook_resid_post for `dictionary_learning` (the
            paper's layer 13), blocks.14.hook_resid_pre, the same place, for the others.
        model_names: base and chat; by default google/gemma-2-2b and google/gemma-2-2b-it.
        dropped_tokens: which tokens were left out of training, in words; by default none for `dictionary_learning`,
            BOS for the others.
        activation_scales: what the models' activations were multiplied by in training, where the file does not say; by
            default 0.2759 and 0.2442 for `kissane`, otherwise 1. They are folded in; (1, 1) leaves weights as they are.
        theta: the threshold on scores under the file's own norm, in place of the file's.
        allow_relu: read a BatchTopK crosscoder whose threshold was never estimated as a ReLU crosscoder.

    Raises:
        ValueError: when there is no crosscoder, it is a training checkpoint, another kind of SAE, its config has keys
            that this version does not know (nothing is dropped silently), or a converter refuses the file.
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
        return _read(Path(path), device, cfg_overrides, options)

    return require_inference(SAE.load_from_disk(path, device=device, dtype=dtype, converter=converter), "load")


def crosscoder_huggingface_loader(
    repo_id: str,
    folder_name: str,
    device: str = "cpu",
    force_download: bool = False,
    cfg_overrides: dict[str, Any] | None = None,
    **options: Any,
) -> tuple[dict[str, Any], dict[str, Tensor], None]:
    """What SAELens asks of a converter: `SAE.from_pretrained(repo, folder, converter=crosscoder_huggingface_loader)`.

    Args:
        repo_id: a Hub repository, or a local folder.
        folder_name: the folder or file in it; "." for the repository itself.
        options: as for `load`, to be filled in with `functools.partial`.
    """
    if Path(folder_name).is_absolute() or ".." in Path(folder_name).parts:
        raise ValueError(f"{folder_name!r} leads out of {repo_id}: name a folder or file inside it.")
    local = Path(repo_id, folder_name)
    hub_id = repo_id if folder_name in ("", ".") else f"{repo_id}/{folder_name}"
    path = local if local.exists() else download(hub_id, force_download=force_download)
    cfg, state = _read(path, device, cfg_overrides, ForeignOptions(**options))
    return cfg, state, None


def _read(
    path: Path, device: str, cfg_overrides: dict[str, Any] | None, options: ForeignOptions
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and tensors in canonical form, as SAELens's loaders return them."""
    own = path.is_dir() and (path / SAE_WEIGHTS_FILENAME).exists()
    weights_path = None if own else find_weights(path)
    if weights_path is None:
        if options.given:
            raise ValueError(
                f"{path} has none of the files that other people's crosscoders have ({', '.join(WEIGHTS_NAMES)}); "
                f"for a crosscoder of this package {', '.join(options.given)} would change what it was trained on."
            )
        return read_own(path, device, cfg_overrides)
    overrides = cfg_overrides or {}
    file = read_foreign_file(weights_path, str_to_dtype(overrides.get("dtype", "float32")))
    cfg, state = canonical_state(CONVERTERS[options.format or _recognise(file)](file, options), options)
    state_assumptions(cfg, weights_path)
    return {**cfg, "device": device, **overrides}, state


def _recognise(file: ForeignFile) -> ForeignFormat:
    if not file.tensors.keys().isdisjoint(MAIN_TENSORS):
        return "dictionary_learning"
    if not file.tensors.keys().isdisjoint(CROSSCODE_TENSORS):
        # The same tensors; but those of Kissane et al. were saved before their scales were folded in.
        return "kissane" if file.path.name == "cc_weights.pt" else "crosscode"
    raise ValueError(
        f"{file.path} is in no layout known here: it holds {printable_names(file.tensors) or 'nothing'}. Known are "
        f"dictionary_learning ({', '.join(MAIN_TENSORS)}), kissane and crosscode ({', '.join(CROSSCODE_TENSORS)})."
    )
