"""Export a crosscoder's latents as the files that Neuronpedia imports.

The format is that of Neuronpedia's public data sets, which its import reads: `lib/db/import.ts` and
`app/api/admin/import/route.ts` of `apps/webapp` in github.com/hijohnnylin/neuronpedia (commit ebb8426, August 2026).
Each line is a row of a table in its database, whose columns are in `prisma/schema.prisma`. Columns that a file's first
line does not name get the database's defaults. SAEDashboard's batches are converted to the same files.
"""

import gzip
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.report.explorer.records import Exploration
from sae_lens_crosscoder.report.export.neuronpedia_rows import (
    Source,
    activation_rows,
    explanation_rows,
    feature_row,
    jsonl,
)
from sae_lens_crosscoder.stacking import StackedLayout, hook_of_model
from sae_lens_crosscoder.storage.atomic import atomic_folder

DEFAULT_CREATOR_ID = "clkht01d40000jv08hvalcvly"
"""The default user of a new Neuronpedia."""
# The import lists a folder with one request, which returns no more names.
_MAX_FILES = 1000


@validate_arguments
def write_neuronpedia(
    exploration: Exploration,
    folder: str | Path,
    source_set: str,
    *,
    model: str = "chat",
    model_id: str | None = None,
    creator_name: str = "",
    creator_id: str = DEFAULT_CREATOR_ID,
    latents_per_file: int = 256,
) -> Path:
    """Write latents in Neuronpedia's import format to `folder/MODEL_ID/LAYER-SOURCE_SET/`.

    A latent's page there has its histogram of activations, its strongest contexts, a sample of all its contexts, its
    explanation if it was interpreted, and the tokens whose logits it raises and lowers most. Neuronpedia's pages are of
    one model: latents appear as those of `model`, with the logits of its decoder there. Activations are the
    crosscoder's, the same for all models, and 0 on masked tokens. Numbers have four digits. A latent that was never
    active has a page without contexts.

    Args:
        exploration: the result of `slc.explore`.
        folder: the folder of all exports. It must not contain the source yet.
        source_set: the source's name, unique for the model: lower-case letters, digits and dashes.
        model: the model under which the latents appear, `base` or `chat`.
        model_id: that model's id on Neuronpedia; by default the last part of its name, in lower case.
        creator_name: the creator's displayed name.
        creator_id: the creator's id on Neuronpedia.
        latents_per_file: Neuronpedia limits the number of files, so large crosscoders need large files.

    Returns:
        The source's folder. Its one-line files describe the source and make it visible to everyone.

    Raises:
        ValueError: for an exploration without examples or profiles, an unknown or unnamed model, an invalid name, a
            hook outside the layers, too many files, or a source that exists already.
    """
    if exploration.examples is None or exploration.profiles is None:
        raise ValueError("The exploration lacks examples or profiles: pass the full result of slc.explore.")
    manifest = exploration.examples.manifest
    names = StackedLayout(tuple(manifest["d_models"])).names
    if model not in names:
        raise ValueError(f"model={model!r} is not a model of the crosscoder: expected one of {', '.join(names)}.")
    m = names.index(model)
    if None in manifest["models"]:
        raise ValueError(
            "The crosscoder's metadata names no models, which Neuronpedia shows: set model_name and chat_model_name in "
            "its cfg.metadata, and explore again."
        )
    source = Source(
        model_id=slug(_last_part(manifest["models"][m])) if model_id is None else model_id,
        source_id=f"{_layer(hook_of_model(manifest['hook_name'], m))}-{source_set}",
        source_set=source_set,
        creator_id=creator_id,
        model=model,
        n_tokens=manifest["n_tokens"],
    )
    _validate_names({"source_set": source_set, "model_id": source.model_id})
    n_latents = len(exploration)
    if latents_per_file < max(1, n_latents / _MAX_FILES):
        raise ValueError(
            f"latents_per_file={latents_per_file} gives more than {_MAX_FILES:,} files for {n_latents:,} latents, and "
            f"Neuronpedia reads no more: pass {max(256, -(-n_latents // _MAX_FILES))}."
        )
    target = Path(folder) / source.model_id / source.source_id
    if target.exists():
        raise ValueError(f"{target} exists already: delete it, or pass another folder.")
    with atomic_folder(target) as partial:
        for table, row in _about(source, manifest, m, creator_name).items():
            (partial / f"{table}.jsonl").write_bytes(jsonl([row]))
        starts = range(0, n_latents, latents_per_file)
        for n, start in enumerate(tqdm(starts, desc="Neuronpedia", unit="file", leave=False)):
            _write_batch(partial, n, exploration, range(start, min(start + latents_per_file, n_latents)), source)
    return target


def slug(name: str) -> str:
    """Convert a name to one that Neuronpedia accepts.

    >>> slug("Llama-3.1-8B Instruct"), slug("k=8")
    ('llama-3.1-8b-instruct', 'k-8')
    """
    return re.sub("[^a-z0-9._]+|__+", "-", name.lower()).strip("-._")


def _validate_names(names: Mapping[str, str]) -> None:
    for what, name in names.items():
        if not name or name != slug(name):
            raise ValueError(f"{what}={name!r} cannot be part of an address: pass {slug(name) or 'crosscoder'!r}.")


def _layer(hook_name: str) -> str:
    layer = re.search(r"\d+", hook_name)
    if layer is None:
        raise ValueError(f"The hook {hook_name!r} names no layer, and Neuronpedia's source ids begin with its number.")
    return layer[0]


def _last_part(name: str) -> str:
    """Drop the owner or the folder from a model's or dataset's name: local paths are private."""
    return Path(name).name


def _about(source: Source, manifest: Mapping[str, Any], m: int, creator_name: str) -> dict[str, dict[str, Any]]:
    """Build the one-line files. Neuronpedia keeps existing entries of the same name, such as the model."""
    owned = {"creatorId": source.creator_id, "visibility": "PUBLIC"}
    base, *others = map(_last_part, manifest["models"])
    description = f"Crosscoder of {base} and {', '.join(others)}"
    described = {"description": description, "creatorName": creator_name, "urls": [], **owned}
    name, dataset = _last_part(manifest["models"][m]), manifest["dataset_path"] or ""
    return {
        "release": {"name": source.source_set, "descriptionShort": description, **described},
        "model": {
            "id": source.model_id,
            "displayName": name,
            "displayNameShort": name,
            "instruct": m > 0,
            "dimension": manifest["d_models"][m],
            "layers": 0,  # required, but unknown here
            "neuronsPerLayer": 0,
            "owner": "",
            **owned,
        },
        "sourceset": {
            "modelId": source.model_id,
            "name": source.source_set,
            "releaseName": source.source_set,
            **described,
        },
        "source": {
            "id": source.source_id,
            "modelId": source.model_id,
            "setName": source.source_set,
            "dataset": _last_part(dataset) if Path(dataset).is_absolute() else dataset,
            "num_prompts": source.n_tokens // manifest["context_size"],
            "num_tokens_in_prompt": manifest["context_size"],
            "notes": f"{description} at {manifest['hook_name']}; its logits are those of {name}.",
            **owned,
        },
    }


def _write_batch(partial: Path, n: int, exploration: Exploration, latents: range, source: Source) -> None:
    records = [exploration[latent] for latent in latents]
    tables = {
        "features": [feature_row(record, source) for record in records],
        "activations": [row for record in records for row in activation_rows(record, source)],
        "explanations": [row for record in records for row in explanation_rows(record, source)],
    }
    for table, rows in tables.items():
        if rows:  # the import fails at an empty file
            (partial / table).mkdir(exist_ok=True)
            (partial / table / f"batch-{n}.jsonl.gz").write_bytes(gzip.compress(jsonl(rows), 6, mtime=0))
