"""Reads a DataMix from the forms in which it is given: fields, JSON text, or a JSON file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sae_lens_crosscoder.crosscoders.config import validate_known_keys
from sae_lens_crosscoder.data.mix import DataMix, MixSource
from sae_lens_crosscoder.storage.field_types import validate_field_types


def mix_from(given: Any) -> DataMix | None:
    """Return a mix given as itself, as a dictionary of its fields, as JSON text, or as the name of a JSON file.

    >>> mix_from('{"sources": [{"path": "web.jsonl"}, {"path": "chats.jsonl", "kind": "conversations"}]}').rule
    'alternate'
    """
    if given is None or isinstance(given, DataMix):
        return given
    if isinstance(given, str):
        try:
            given = json.loads(given if given.lstrip().startswith("{") else Path(given).read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError(
                f"mix={given!r:.200} cannot be read ({error.strerror}): give a mix's fields as JSON, or the name of a "
                "JSON file."
            ) from error
        except json.JSONDecodeError as error:
            raise ValueError(
                f"The mix is not valid JSON ({error}): give its fields as JSON, or the name of a JSON file."
            ) from error
    sources: list[Any] = [None]
    if isinstance(given, Mapping) and isinstance(given.get("sources"), list):
        sources = given["sources"]
    if not isinstance(given, Mapping) or not all(isinstance(source, Mapping) for source in sources):
        raise ValueError(f"invalid mix {given!r:.200}: expected an object with a list of `sources`, each an object.")
    validate_known_keys(given, DataMix)
    validate_field_types(DataMix, given)
    for source in sources:
        validate_known_keys(source, MixSource)
        validate_field_types(MixSource, source)
    settings: list[dict[str, Any]] = [{"path": "", **source} for source in sources]
    fields: dict[str, Any] = {**given, "sources": [MixSource(**each) for each in settings]}
    return DataMix(**fields)
