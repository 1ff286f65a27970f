"""The explorer: one HTML file to browse thousands of latents offline."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from sae_lens_crosscoder.analysis.diagnosis.own_probe import with_own_probe
from sae_lens_crosscoder.analysis.diagnosis.verdict import NU_ERROR_LIMIT, NU_FREE_LIMIT, NU_RECONSTRUCTION_LIMIT
from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.report.explorer.packing import (
    KL_STEP,
    LATENTS_PER_BLOCK,
    TOKENS_PER_BLOCK,
    Texts,
    TokenPool,
    columns_block,
    packed,
    place_examples,
    ragged_block,
    record_json,
    short,
)
from sae_lens_crosscoder.report.explorer.records import Exploration
from sae_lens_crosscoder.report.explorer.strips import FULL_KL, N_HUES, STRENGTH
from sae_lens_crosscoder.report.figures.delta_norm_and_nu import CLASS_BORDERS, REGIONS
from sae_lens_crosscoder.report.html.colours import colour_rules
from sae_lens_crosscoder.report.html.document import json_text, render_page, resource, write_document
from sae_lens_crosscoder.report.html.inert import visible
from sae_lens_crosscoder.stacking import StackedLayout

_SCRIPTS = (
    "dom",
    "data",
    "numbers",
    "state",
    "filters",
    "charts",
    "table",
    "strips",
    "facts",
    "latent",
    "keys",
    "main",
)
"""Concatenated in this order: later scripts use earlier ones."""
_LIVE_SCRIPTS = ("ask", "try")
"""After the others, in a page that a server makes."""


@validate_arguments
def write_explorer(explorations: Mapping[str, Exploration], path: str | Path, title: str | None = None) -> Path:
    """Write one HTML file with a table of all latents, figures linked to it, and a page for every latent.

    The file needs no server and no network, and works from disk and in a sandboxed frame. `FILE.html#latent=12` opens
    a latent. Parts that an exploration lacks are not shown. Tokens and names appear as text, never as markup.

    Args:
        explorations: results of `slc.explore` by crosscoder name.
        title: by default the models' names.

    Raises:
        ValueError: if `explorations` is empty.
    """
    return write_document(explorer_page(explorations, title), path)


def explorer_page(
    explorations: Mapping[str, Exploration], title: str | None = None, live: Mapping[str, Any] | None = None
) -> str:
    """Render what `write_explorer` writes.

    Args:
        live: description of the server that the page comes from, for a panel that asks it; None for a page on its own.
    """
    if not explorations:
        raise ValueError("`explorations` is empty: pass results of slc.explore by crosscoder name.")
    if title is None:
        models = next(iter(explorations.values())).manifest.get("models") or ["base", "chat"]
        title = " \u2192 ".join(map(str, models))
    texts = Texts()
    packings = [
        _crosscoder(f"c{i}", name, exploration, texts) for i, (name, exploration) in enumerate(explorations.items())
    ]
    about = {
        "crosscoders": [about for about, _, _ in packings],
        "latentsPerBlock": LATENTS_PER_BLOCK,
        "tokensPerBlock": TOKENS_PER_BLOCK,
        "klStep": KL_STEP,
        "fullKl": FULL_KL,
        "strength": STRENGTH,
        "nHues": N_HUES,
        "classBorders": CLASS_BORDERS,
        "regions": REGIONS,
        "limits": {"error": NU_ERROR_LIMIT, "reconstruction": NU_RECONSTRUCTION_LIMIT, "free": NU_FREE_LIMIT},
        "live": live,
    }
    styles = ("html/page.css", "explorer/strips.css", "explorer/explorer.css", *(["explorer/try.css"] if live else []))
    return render_page(
        "explorer/explorer.html",
        title=title,
        style="".join(map(resource, styles)) + colour_rules("--hue"),
        scripts=[_script(is_live=live is not None)],
        connects=live is not None,
        about=json_text(about),
        early={"texts": texts.block()} | {name: block for _, early, _ in packings for name, block in early.items()},
        late={name: block for _, _, late in packings for name, block in late.items()},
    )


def _crosscoder(
    key: str, name: str, exploration: Exploration, texts: Texts
) -> tuple[dict[str, Any], dict[str, str], dict[str, str]]:
    """Pack a crosscoder: its description, the blocks that the page needs at once, and those it may need later."""
    table, examples = exploration.table, exploration.examples
    pool = TokenPool(1 if examples is None else examples.manifest["context_size"], texts)
    records: list[dict[str, Any]] = []
    fires_on: list[list[int]] = []
    writes: list[list[int]] = []
    concepts: list[list[int]] = []
    for latent in tqdm(range(len(exploration)), desc=f"Packing {visible(name)}", unit="latent", leave=False):
        record = exploration[latent]
        records.append(record_json(record, texts, pool, exploration.groups))
        fires_on.append([texts(text) for text in record.fires_on()])
        writes.append([texts(text) for text in record.writes()])
        concepts.append([texts(concept["concept"]) for concept in record.concepts])
    starts, pool_blocks = pool.packed()
    described, columns = columns_block(with_own_probe(table))
    about = {
        "key": key,
        "name": visible(name),
        "n": len(table),
        **described,
        "models": (models := _models(exploration)),
        "compared": [visible(name) for name in exploration.manifest.get("compared") or models[:2]],
        "usedBy": [] if exploration.use is None else [visible(name) for name in exploration.use.names],
        "groups": [visible(group) for group in exploration.groups],
        "useGroups": [visible(group) for group in exploration.use_groups],
        "lastPosition": None if exploration.profiles is None else exploration.profiles.last_position,
        "examples": examples is not None,
        "lenses": bool(exploration.lenses),
        "hasConcepts": any(concepts),
        "hasKl": exploration.kl is not None,
        "alone": exploration.codes is not None,
        "sameWidth": examples is None or len(set(examples.manifest["d_models"])) == 1,
        "random": _random_band(exploration),
        "conclusion": visible(exploration.manifest.get("conclusion", "")),
        "manifest": _visible(exploration.manifest),
    }
    early = {
        f"{key}-columns": columns,
        f"{key}-fires": ragged_block(fires_on),
        f"{key}-writes": ragged_block(writes),
        f"{key}-concepts": ragged_block(concepts),
    }
    late = {f"{key}-tokens-{i}": block for i, block in enumerate(pool_blocks)}
    for i in range(0, len(records), LATENTS_PER_BLOCK):
        block = [place_examples(record, starts) for record in records[i : i + LATENTS_PER_BLOCK]]
        text = json.dumps(block, separators=(",", ":"), allow_nan=False)
        late[f"{key}-latents-{i // LATENTS_PER_BLOCK}"] = packed(text.encode())
    return about, early, late


def _models(exploration: Exploration) -> list[str]:
    """The models' names in columns and examples."""
    if exploration.examples is not None:
        return list(StackedLayout(tuple(exploration.examples.manifest["d_models"])).names)
    return list(exploration.lenses) or ["base", "chat"]


def _random_band(exploration: Exploration) -> dict[str, Any] | None:
    """Compute the central 95 % of the effects of random latents."""
    drawn = {name: values for name, values in exploration.random_effects.items() if len(values) > 1}
    if not drawn:
        return None
    bands = {name: [short(end) for end in np.quantile(values, [0.025, 0.975])] for name, values in drawn.items()}
    n_drawn = len(next(iter(drawn.values())))
    return {"bands": bands, "n": n_drawn, "n_conversations": exploration.n_conversations}


def _visible(value: Any) -> Any:
    """Convert a manifest to JSON values with visible texts."""
    if isinstance(value, Mapping):
        return {visible(name): _visible(part) for name, part in value.items()}  # pyright: ignore[reportUnknownArgumentType]
    if isinstance(value, list | tuple):
        return [_visible(part) for part in value]
    if value is None or isinstance(value, bool):
        return value
    return short(value) if isinstance(value, int | float) else visible(value)


def _script(is_live: bool) -> str:
    names = [*_SCRIPTS, *(_LIVE_SCRIPTS if is_live else ())]
    parts = [resource(f"explorer/js/{name}.js") for name in names]
    return '(() => {\n"use strict";\n' + "\n".join(parts) + "})();\n"
