"""Load saved crosscoders, this package's and other people's, from a folder or the Hub."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE
from sae_lens.constants import SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME
from sae_lens.util import str_to_dtype
from torch import Tensor

from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder, validate_inference
from sae_lens_crosscoder.loading.files import (
    WEIGHTS_NAMES,
    find_weights,
    load_foreign_file,
    validate_no_language_model,
)
from sae_lens_crosscoder.loading.formats.assembly import canonical_state, warn_of_assumptions
from sae_lens_crosscoder.loading.formats.crosscode import convert_crosscode
from sae_lens_crosscoder.loading.formats.dedicated_features import convert_dedicated_features
from sae_lens_crosscoder.loading.formats.dictionary_learning import convert_dictionary_learning
from sae_lens_crosscoder.loading.formats.foreign import (
    ForeignCrosscoder,
    ForeignFile,
    ForeignFormat,
    ForeignOptions,
    ModelOrder,
)
from sae_lens_crosscoder.loading.formats.gemma_scope_2 import convert_gemma_scope_2
from sae_lens_crosscoder.loading.formats.kissane import convert_kissane
from sae_lens_crosscoder.loading.formats.llamascopium import convert_llamascopium
from sae_lens_crosscoder.loading.formats.recognition import known_layouts, recognise
from sae_lens_crosscoder.loading.hub import download
from sae_lens_crosscoder.loading.own import load_own
from sae_lens_crosscoder.storage.names import printable_names

CONVERTERS: dict[ForeignFormat, Callable[[ForeignFile, ForeignOptions], ForeignCrosscoder]] = {
    "dictionary_learning": convert_dictionary_learning,
    "kissane": convert_kissane,
    "crosscode": convert_crosscode,
    "dedicated_features": convert_dedicated_features,
    "gemma_scope_2": convert_gemma_scope_2,
    "llamascopium": convert_llamascopium,
}


@validate_arguments
def load(
    source: str | Path,
    device: str = "cpu",
    dtype: str | None = None,
    *,
    format: ForeignFormat | None = None,
    hook_name: str | None = None,
    model_names: tuple[str, str] | None = None,
    model_order: ModelOrder | None = None,
    dropped_tokens: str | None = None,
    activation_scales: tuple[float, float] | None = None,
    theta: float | None = None,
    allow_relu: bool = False,
    split_gates: bool = False,
) -> InferenceCrosscoder:
    """Load an inference crosscoder in canonical form, from this package's layout or a published one.

    Published files are recognised by their tensors: see the page "Published crosscoders". They leave some settings
    open. Settings that neither the file nor the keyword arguments give are assumed only where the paper's fit the
    widths, listed in one warning with the config keys that were not read, and kept in `cfg.metadata.assumptions`.

    A crosscoder over several hooks has `cfg.metadata.sources`, the model and the hook of every part of the stack, in
    place of a hook and a chat model: it encodes, decodes and has norms per part, for rows that you stack in that order.

    Args:
        source: a folder, a weights file, or a Hub id: `owner/name`, `owner/name/folder` or `owner/name/folder/file`.
        format: one of `dictionary_learning`, `kissane`, `crosscode`, `dedicated_features`, `gemma_scope_2` and
            `llamascopium`; by default recognised.
        hook_name: the hook that the activations were read at. For widths of Gemma 2 2B, the default is
            blocks.13.hook_resid_post for `dictionary_learning` (the paper's layer 13), blocks.14.hook_resid_pre, the
            same place, for `kissane` and `crosscode`; otherwise it is unknown.
        model_names: base and chat; by default google/gemma-2-2b and google/gemma-2-2b-it, if the widths are theirs.
        model_order: `base_chat` or `chat_base`, the order of the models in the file; by default the config's, or that
            of the layout. The crosscoder is base first in any case.
        dropped_tokens: a description of the tokens left out of training.
        activation_scales: factors by which each model's activations were multiplied in training, for a file without
            them; by default 0.2759 and 0.2442 for the crosscoder of Kissane et al., otherwise 1. They are folded into
            the weights; (1, 1) leaves the weights as they are. A crosscoder of this package that was trained without
            scales is read with these, see `InferenceCrosscoder.with_activation_scales`.
        theta: the threshold on scores under the file's own norm, in place of the file's.
        allow_relu: load a crosscoder whose threshold is unknown as a ReLU crosscoder.
        split_gates: load latents that have a gate per part of the stack (decoupled BatchTopK, Llamascopium) as one
            latent per part. The function is the same; Delta_norm is then 0 or 1 by construction.

    Raises:
        ValueError: if there is no crosscoder, or a training checkpoint, or another kind of SAE; for unknown config keys
            (nothing is dropped silently); and for a file that a converter refuses.
    """
    path = Path(source) if Path(source).exists() else download(str(source))
    is_read_with_scales = activation_scales is not None and _is_own(path)
    options = ForeignOptions(
        format=format,
        hook_name=hook_name,
        model_names=model_names,
        model_order=model_order,
        dropped_tokens=dropped_tokens,
        activation_scales=None if is_read_with_scales else activation_scales,
        theta=theta,
        allow_relu=allow_relu,
        split_gates=split_gates,
    )

    def converter(path: str | Path, device: str, cfg_overrides: dict[str, Any] | None) -> Any:
        return _load(Path(path), device, cfg_overrides, options)

    with _naming(path):
        sae = SAE.load_from_disk(path, device=device, dtype=dtype, converter=converter)
    loaded = validate_inference(sae, "load")
    return loaded.with_activation_scales(activation_scales) if activation_scales and is_read_with_scales else loaded


@contextmanager
def _naming(path: Path) -> Generator[None]:
    """Put the path in front of a ValueError that names no file of it, such as one about the config made of them."""
    try:
        yield
    except ValueError as error:
        if path.name in str(error) or any(part.name in str(error) for part in path.parent.glob(f"{path.name}/*")):
            raise
        raise ValueError(f"{path}: {error}") from error


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
    is_ours = _is_own(path)
    weights = [] if is_ours else find_weights(path)
    if not weights:
        if options.given:
            raise ValueError(
                f"{', '.join(options.given)} cannot be set for a crosscoder of this package, which records them. "
                f"{path} has no weights of another layout ({', '.join(WEIGHTS_NAMES)})."
            )
        return load_own(path, device, cfg_overrides)
    overrides = cfg_overrides or {}
    foreign, file = _convert(weights, str_to_dtype(overrides.get("dtype", "float32")), options)
    cfg, state = canonical_state(foreign, options, file)
    warn_of_assumptions(cfg, file.path)
    return {**cfg, "device": device, **overrides}, state


def load_foreign(source: str | Path, **options: Any) -> ForeignCrosscoder:
    """Load a published crosscoder in the space and units of its training, base first.

    Args:
        options: those of `load`.

    Raises:
        ValueError: for a crosscoder of this package, and a file that a converter refuses.
    """
    path = Path(source) if Path(source).exists() else download(str(source))
    weights = [] if _is_own(path) else find_weights(path)
    if not weights:
        raise ValueError(f"{path} has no weights of a published layout ({', '.join(WEIGHTS_NAMES)}).")
    foreign, _ = _convert(weights, torch.float64, ForeignOptions(**options))
    return foreign.swapped() if foreign.model_order.value == "chat_base" else foreign


def _convert(weights: list[Path], dtype: torch.dtype, options: ForeignOptions) -> tuple[ForeignCrosscoder, ForeignFile]:
    file = load_foreign_file(weights, dtype)
    layout = options.format or recognise(file.tensors, file.settings, file.path.name)
    if layout is None:
        validate_no_language_model(file.path)
        raise ValueError(
            f"{file.path} has an unknown layout, with the tensors {printable_names(file.tensors) or '(none)'}. Known "
            f"are {known_layouts()}."
        )
    return CONVERTERS[layout](file, options), file


def _is_own(path: Path) -> bool:
    """True for a folder with SAELens's weights file; Llamascopium gives its own the same name, beside a config.json."""
    has_weights = path.is_dir() and (path / SAE_WEIGHTS_FILENAME).exists()
    is_theirs = (path / "config.json").exists() and not (path / SAE_CFG_FILENAME).exists()
    return has_weights and not is_theirs
