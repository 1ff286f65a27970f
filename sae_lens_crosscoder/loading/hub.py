"""Download the files of a crosscoder from the Hub, and no others."""

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError
from sae_lens.constants import SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME

from sae_lens_crosscoder.loading.files import SHARD_INDEX, SUFFIXES, WEIGHTS_NAMES, validate_no_language_model
from sae_lens_crosscoder.loading.formats.settings import SETTINGS_NAMES
from sae_lens_crosscoder.storage.checksums import CHECKSUMS_FILENAME

_PARTS = ("params_layer_*.safetensors", SHARD_INDEX, "model-*-of-*.safetensors")
_OURS = (SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME, CHECKSUMS_FILENAME)
_NAMES = (*_OURS, *WEIGHTS_NAMES, *SETTINGS_NAMES, *_PARTS)


def download(hub_id: str, names: Sequence[str] = (), force_download: bool = False) -> Path:
    """Download a folder or file of a Hub repository, `owner/name` or `owner/name/folder`, and return its local path.

    Args:
        names: the files of the folder to download; by default those of a crosscoder, in any layout.

    Raises:
        ValueError: for a string that is no Hub id, or an id that neither the Hub nor its local cache knows.
    """
    parts = hub_id.split("/")
    # A wildcard would download all matches; a backslash leaves the folder on Windows.
    if len(parts) < 2 or any(part in ("", ".", "..") or set(part) & set("*?[]\\\0") for part in parts):
        raise ValueError(
            f"{hub_id!r} is neither a local folder nor a Hub id: expected 'owner/name' or 'owner/name/folder'."
        )
    target = "/".join(parts[2:])
    folder = target
    if target.endswith(SUFFIXES):
        folder, _, name = target.rpartition("/")
        names = [name, f"{Path(name).stem}_cfg.json", *SETTINGS_NAMES]
    prefix = f"{folder}/" if folder else ""
    if not names:
        names = _NAMES
        root = _snapshot(hub_id, [f"{prefix}config.json"], force_download)
        if (settings := Path(root, folder)).is_dir():
            validate_no_language_model(settings)  # before its weights, which may be many gigabytes
    root = _snapshot(hub_id, sorted({prefix + name for name in names}), force_download)
    path = Path(root, target)
    if not path.exists():
        raise ValueError(f"The Hub repository {'/'.join(parts[:2])} has no crosscoder at {target!r}.")
    return path


def _snapshot(hub_id: str, wanted: Sequence[str], force_download: bool) -> str:
    try:
        return snapshot_download(
            "/".join(hub_id.split("/")[:2]), allow_patterns=[*wanted], force_download=force_download
        )
    except (RepositoryNotFoundError, LocalEntryNotFoundError, HFValidationError) as error:
        raise ValueError(
            f"{hub_id!r} was not found in {Path.cwd()}, on the Hub or in its cache: check the spelling, the "
            "connection, and your login if the repository is private."
        ) from error
