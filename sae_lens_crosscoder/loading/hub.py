"""Fetches from the Hub what a crosscoder's folder holds, and nothing else."""

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError
from sae_lens.constants import SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME

from sae_lens_crosscoder.loading.files import SETTINGS_NAMES, SUFFIXES, WEIGHTS_NAMES


def download(hub_id: str, names: Sequence[str] = (), force_download: bool = False) -> Path:
    """The local copy of a folder or file in a Hub repository, `owner/name` or `owner/name/folder`.

    Args:
        names: the files of the folder to fetch; by default those that a crosscoder is made of, ours or other people's.

    Raises:
        ValueError: for what is no Hub id, and for what neither the Hub nor its local cache has.
    """
    parts = hub_id.split("/")
    # A wildcard would download whatever it fits, a backslash leads out of the folder on Windows.
    if len(parts) < 2 or any(part in ("", ".", "..") or set(part) & set("*?[]\\\0") for part in parts):
        raise ValueError(
            f"{hub_id!r} is neither a folder here nor a Hub id: a Hub id reads 'owner/name' or 'owner/name/folder'."
        )
    target = "/".join(parts[2:])
    folder = target
    if target.endswith(SUFFIXES):
        folder, _, name = target.rpartition("/")
        names = [name, f"{Path(name).stem}_cfg.json", *SETTINGS_NAMES]
    names = names or [SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME, *WEIGHTS_NAMES, *SETTINGS_NAMES]
    prefix = f"{folder}/" if folder else ""
    wanted = sorted({prefix + name for name in names})
    try:
        root = snapshot_download("/".join(parts[:2]), allow_patterns=wanted, force_download=force_download)
    except (RepositoryNotFoundError, LocalEntryNotFoundError, HFValidationError) as error:
        raise ValueError(
            f"{hub_id!r} is not a folder here (looked in {Path.cwd()}), and neither the Hub nor its cache has it: "
            "check the spelling, the connection, and your login if the repository is private."
        ) from error
    path = Path(root, target)
    if not path.exists():
        raise ValueError(f"The Hub repository {'/'.join(parts[:2])} has no crosscoder at {target!r}.")
    return path
