"""The explorer: one HTML file in which thousands of latents are looked through, one by one, offline."""

import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from sae_lens_crosscoder.analysis.diagnosis.verdict import NU_ERROR_LIMIT, NU_FREE_LIMIT, NU_RECONSTRUCTION_LIMIT
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
from sae_lens_crosscoder.report.figures.delta_norm_and_nu import CLASS_BORDERS, REGIONS
from sae_lens_crosscoder.report.html.document import (
    colour_rules,
    document,
    json_element,
    resource,
    script_element,
    write_document,
)
from sae_lens_crosscoder.report.html.inert import inert, visible
from sae_lens_crosscoder.report.html.strips import FULL_KL, STRENGTH
from sae_lens_crosscoder.report.pages.report_page import reading_list
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
"""In the order in which they build on each other."""

_KEYS = """<h3>Keys</h3><dl class="keys">
<dt><kbd>j</kbd> <kbd>k</kbd></dt><dd>next, previous latent</dd>
<dt><kbd>Enter</kbd></dt><dd>open it</dd>
<dt><kbd>Esc</kbd></dt><dd>back to all latents</dd>
<dt><kbd>/</kbd></dt><dd>search</dd>
<dt><kbd>?</kbd></dt><dd>this help</dd>
</dl>"""


def write_explorer(path: str | Path, explorations: Mapping[str, Exploration], title: str | None = None) -> Path:
    """Write one HTML file with a table of all latents, figures linked to it, and a page for every latent.

    It needs no server and no network, and works from disk and in a sandboxed frame. `FILE.html#latent=12` opens a
    latent. What an exploration does not hold is not shown. Tokens and names are text in it, whatever they say.

    Args:
        explorations: what `slc.explore` found, by crosscoder name.
        title: by default the models' names.

    Raises:
        ValueError: without explorations.
    """
    if not explorations:
        raise ValueError("There is nothing to explore: `explorations` is empty. Give it what slc.explore returns.")
    if title is None:
        models = next(iter(explorations.values())).table.attrs.get("models") or ["base", "chat"]
        title = " \u2192 ".join(map(str, models))
    texts = Texts()
    crosscoders: list[dict[str, Any]] = []
    early: list[str] = []
    late: list[str] = []
    for i, (name, exploration) in enumerate(explorations.items()):
        about, at_once, in_blocks = _crosscoder(f"c{i}", name, exploration, texts)
        crosscoders.append(about)
        early += at_once
        late += in_blocks
    about = {
        "crosscoders": crosscoders,
        "latentsPerBlock": LATENTS_PER_BLOCK,
        "tokensPerBlock": TOKENS_PER_BLOCK,
        "klStep": KL_STEP,
        "fullKl": FULL_KL,
        "strength": STRENGTH,
        "classBorders": CLASS_BORDERS,
        "regions": REGIONS,
        "limits": {"error": NU_ERROR_LIMIT, "reconstruction": NU_RECONSTRUCTION_LIMIT, "free": NU_FREE_LIMIT},
    }
    # The script stands before the blocks, so that the table is there while they are still being read.
    script = _script()
    body = "\n".join(
        [
            f"<header><h1>{inert(title)}</h1></header>",
            "<main></main>",
            f'<dialog id="help"><form method="dialog"><button class="plain" aria-label="close">\u00d7</button></form>'
            f"{_KEYS}<h3>The numbers</h3>{reading_list()}</dialog>",
            '<noscript><p class="soft">The explorer is a script: allow it to run.</p></noscript>',
            json_element(about, "about"),
            _element("texts", texts.block()),
            *early,
            script_element(script),
            *late,
        ]
    )
    style = resource("html/page.css") + resource("html/strips.css") + _resource("explorer.css") + colour_rules("--hue")
    return write_document(path, document(title, body, style=style, scripts=[script]))


def _crosscoder(
    key: str, name: str, exploration: Exploration, texts: Texts
) -> tuple[dict[str, Any], list[str], list[str]]:
    """What the page says about a crosscoder, the data that it needs at once, and the blocks that it may need."""
    table, examples = exploration.table, exploration.examples
    pool = TokenPool(1 if examples is None else examples.manifest["context_size"], texts)
    records: list[dict[str, Any]] = []
    fires_on: list[list[int]] = []
    writes: list[list[int]] = []
    concepts: list[list[int]] = []
    for latent in tqdm(range(len(exploration)), desc=f"Packing {name}", unit="latent", leave=False):
        record = exploration[latent]
        records.append(record_json(record, texts, pool, exploration.groups))
        fires_on.append([texts(text) for text in record.fires_on()])
        writes.append([texts(text) for text in record.writes()])
        concepts.append([texts(concept["concept"]) for concept in record.concepts])
    starts, pool_blocks = pool.packed()
    described, columns = columns_block(table)
    about = {
        "key": key,
        "name": visible(name),
        "n": len(table),
        **described,
        "models": _models(exploration),
        "groups": [visible(group) for group in exploration.groups],
        "lastPosition": None if exploration.profiles is None else exploration.profiles.last_position,
        "examples": examples is not None,
        "lenses": bool(exploration.lenses),
        "hasConcepts": any(concepts),
        "hasKl": exploration.kl is not None,
        "random": _random_band(exploration),
        "conclusion": visible(table.attrs.get("conclusion", "")),
        "manifest": _visible(table.attrs),
    }
    early = [_element(f"{key}-columns", columns)]
    for column, rows in (("fires", fires_on), ("writes", writes), ("concepts", concepts)):
        early.append(_element(f"{key}-{column}", ragged_block(rows)))
    late = [_element(f"{key}-tokens-{i}", block) for i, block in enumerate(pool_blocks)]
    for i in range(0, len(records), LATENTS_PER_BLOCK):
        block = [place_examples(record, starts) for record in records[i : i + LATENTS_PER_BLOCK]]
        text = json.dumps(block, separators=(",", ":"), allow_nan=False)
        late.append(_element(f"{key}-latents-{i // LATENTS_PER_BLOCK}", packed(text.encode())))
    return about, early, late


def _models(exploration: Exploration) -> list[str]:
    """What the models are called in columns and examples."""
    if exploration.examples is not None:
        return list(StackedLayout(tuple(exploration.examples.manifest["d_models"])).names)
    return list(exploration.lenses) or ["base", "chat"]


def _random_band(exploration: Exploration) -> dict[str, Any] | None:
    """The central 95 % of the effects of random latents."""
    attrs = {} if exploration.effects is None else exploration.effects.attrs
    drawn = {name: values for name, values in attrs.get("random", {}).items() if len(values) > 1}
    if not drawn:
        return None
    bands = {name: [short(end) for end in np.quantile(values, [0.025, 0.975])] for name, values in drawn.items()}
    n_drawn = len(next(iter(drawn.values())))
    return {"bands": bands, "n": n_drawn, "n_conversations": attrs.get("n_conversations")}


def _visible(value: Any) -> Any:
    """What JSON can hold of a manifest, as visible text."""
    if isinstance(value, Mapping):
        return {visible(name): _visible(part) for name, part in value.items()}  # pyright: ignore[reportUnknownArgumentType]
    if isinstance(value, list | tuple):
        return [_visible(part) for part in value]
    if value is None or isinstance(value, bool):
        return value
    return short(value) if isinstance(value, int | float) else visible(value)


def _element(name: str, block: str) -> str:
    return f'<script type="application/gzip" id="{name}">{block}</script>'


def _script() -> str:
    parts = [_resource(f"js/{name}.js") for name in _SCRIPTS]
    return '(() => {\n"use strict";\n' + "\n".join(parts) + "})();\n"


def _resource(name: str) -> str:
    return files("sae_lens_crosscoder.report.explorer").joinpath(name).read_text(encoding="utf-8")
