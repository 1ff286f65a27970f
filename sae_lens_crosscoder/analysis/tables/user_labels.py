"""User labels of latents, saved in the crosscoder's folder."""

import json
from pathlib import Path
from typing import Any

from sae_lens.constants import SAE_CFG_FILENAME

from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.crosscoders.folder import CROSSCODER_SHA256, crosscoder_digest
from sae_lens_crosscoder.loading.hub import download
from sae_lens_crosscoder.storage.atomic import write_text_atomically
from sae_lens_crosscoder.storage.checksums import CHECKSUMS_FILENAME, FolderChecksums
from sae_lens_crosscoder.storage.json_files import load_json

LABELS_FILENAME = "user_labels.json"
MAX_CHARACTERS = 1000


@validate_arguments
def save_label(folder: str | Path, latent: int, text: str | None) -> Path:
    """Save a label of a latent in its crosscoder's folder, for `load_labels` and `Diagnosis.load`.

    Args:
        folder: the crosscoder's folder.
        latent: its index.
        text: at most 1000 characters; None removes the label.

    Raises:
        ValueError: for a folder without a crosscoder, a latent that it does not have, a text that is blank, too long or
            invalid Unicode, and for existing labels that are damaged or belong to other weights, which stay unchanged.
    """
    path = Path(folder) / LABELS_FILENAME
    cfg_path = Path(folder) / SAE_CFG_FILENAME
    if not cfg_path.exists():
        raise ValueError(f"{folder} contains no crosscoder. Save the crosscoder there before its labels.")
    cfg = load_json(cfg_path)
    if not 0 <= latent < cfg["d_sae"]:
        raise ValueError(f"latent={latent} does not exist: the crosscoder has latents 0 to {cfg['d_sae'] - 1}.")
    if text is not None and not _is_label(text):
        raise ValueError(
            f"{text!r:.80} is not a valid label. Pass 1 to {MAX_CHARACTERS} characters that are not all blank, or None "
            "to remove the label."
        )
    labels = load_labels(folder)
    labels.pop(latent, None)
    if text is not None:
        labels[latent] = text
    by_name = {str(j): labels[j] for j in sorted(labels)}
    fields = {CROSSCODER_SHA256: crosscoder_digest(folder), "labels": by_name}
    write_text_atomically(json.dumps(fields, indent=1), path)
    checksums = FolderChecksums(Path(folder))
    checksums.record(LABELS_FILENAME)
    checksums.write()
    return path


@validate_arguments
def load_labels(folder: str | Path) -> dict[int, str]:
    """Load the labels in a crosscoder's folder, local or on the Hub (`owner/name`), by latent.

    Raises:
        ValueError: for labels that are damaged, or belong to other weights than those in the folder.
    """
    if not Path(folder).exists():
        folder = download(str(folder), [LABELS_FILENAME, SAE_CFG_FILENAME, CHECKSUMS_FILENAME])
    path, cfg_path = Path(folder) / LABELS_FILENAME, Path(folder) / SAE_CFG_FILENAME
    if not path.exists():
        return {}
    FolderChecksums(Path(folder)).warn_if_edited(LABELS_FILENAME)
    fields = load_json(path)
    labels: Any = fields.get("labels")
    if fields.keys() != {CROSSCODER_SHA256, "labels"} or not isinstance(labels, dict):
        raise ValueError(f"{path} is damaged: it contains no labels of latents. Delete it, or download it again.")
    cfg = load_json(cfg_path) if cfg_path.exists() else {}
    labelled, saved = fields[CROSSCODER_SHA256], crosscoder_digest(folder)
    if None not in (labelled, saved) and labelled != saved:
        raise ValueError(
            f"{path} belongs to another crosscoder than the one in its folder: to other weights, or to these in "
            "another precision. Move it to the folder of its crosscoder."
        )
    wrong = [name for name, text in labels.items() if not _is_latent(name, cfg.get("d_sae")) or not _is_label(text)]
    if wrong:
        raise ValueError(
            f"{path} is damaged: {wrong[0]!r:.80} is not a latent with a label. Delete it, or download it again."
        )
    return {int(name): text for name, text in labels.items()}


def _is_latent(name: str, d_sae: int | None) -> bool:
    is_number = name.isascii() and name.isdecimal() and len(name) < 12 and name == str(int(name))
    return is_number and (d_sae is None or int(name) < d_sae)


def _is_label(text: object) -> bool:
    """True for a text that is not blank, not too long, and valid Unicode (no half of a surrogate pair)."""
    if not isinstance(text, str) or not text.strip() or len(text) > MAX_CHARACTERS:
        return False
    return not any("\ud800" <= character <= "\udfff" for character in text)
