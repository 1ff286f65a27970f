"""Share a crosscoder on the Hugging Face Hub: write its model card and upload its folder."""

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

from sae_lens_crosscoder.analysis.diagnosis.diagnosis import LATENTS_FILENAME, Diagnosis
from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.loading.load import load
from sae_lens_crosscoder.report.export.model_card import CARD_MARK, model_card
from sae_lens_crosscoder.storage.atomic import write_text_atomically
from sae_lens_crosscoder.storage.json_files import parse_json

CARD_FILENAME = "README.md"
METRICS_FILENAME = "metrics.jsonl"
_NOT_UPLOADED = ["checkpoints/**", "**/*.partial", "*.partial", ".*", "**/.*"]


@validate_arguments
def write_model_card(folder: str | Path, repo_id: str = "OWNER/NAME", license: str | None = None) -> Path:
    """Write README.md into a crosscoder's folder: the models, how to load it, its results.

    Args:
        folder: as `train` or `save_inference_model` writes it. Metrics and latents are reported if it has them.
        repo_id: the repository's name on the Hub.
        license: the weights' licence, such as "mit" or "gemma".

    Raises:
        ValueError: if the folder holds no inference crosscoder, or a README.md written by hand.
    """
    folder = Path(folder)
    crosscoder = load(folder)
    path = folder / CARD_FILENAME
    if path.exists() and CARD_MARK not in path.read_text(encoding="utf-8"):
        raise ValueError(f"{path} was written by hand: move it away, or publish it with write_card=False.")
    diagnosis = Diagnosis.load(folder) if (folder / LATENTS_FILENAME).exists() else None
    card = model_card(crosscoder, repo_id, license, diagnosis, _last_metrics(folder / METRICS_FILENAME))
    write_text_atomically(card, path)
    return path


@validate_arguments
def push_to_hub(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = True,
    license: str | None = None,
    write_card: bool = True,
) -> str:
    """Upload a crosscoder's folder with a model card to the Hub, and return the repository's address.

    Checkpoints, unfinished files and hidden files are not uploaded. `runner_cfg.json` is: it names the data, and local
    folders if models or data came from such.

    Args:
        repo_id: `owner/name`. The repository is created if it does not exist.
        private: create a private repository. Nothing becomes public unless this is False.

    Raises:
        ValueError: if the folder holds no inference crosscoder, the name is malformed, or the repository is public
            although `private` is True.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"repo_id={repo_id!r} is not a Hub repository name such as owner/name: {error}") from error
    if write_card:
        write_model_card(folder, repo_id, license)
    else:
        load(folder)  # raises if the folder holds no crosscoder
    api = HfApi()
    try:
        is_public = not api.repo_info(repo_id).private
    except RepositoryNotFoundError:
        is_public = False
        api.create_repo(repo_id, private=private)
    if is_public and private:
        raise ValueError(f"{repo_id} is public already: pass private=False to upload this crosscoder for everyone.")
    api.upload_folder(repo_id=repo_id, folder_path=folder, ignore_patterns=_NOT_UPLOADED)
    return f"https://huggingface.co/{repo_id}"


def _last_metrics(path: Path) -> dict[str, int | float]:
    """Read the numbers in the last row of `metrics.jsonl`; an empty dict if there is none."""
    if not path.exists() or not (lines := path.read_text(encoding="utf-8").splitlines()):
        return {}
    try:
        row = parse_json(lines[-1])
    except ValueError as error:
        raise ValueError(f"{path} has an invalid last line: {error}") from error
    return {name: value for name, value in row.items() if isinstance(value, int | float)}
