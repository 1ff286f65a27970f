"""Every page and view that the package writes, of made-up results with long names and wide tables."""

import dataclasses

import pandas as pd
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.models.tiny import TINY_HOOK, dialogues
from sae_lens_crosscoder.report import write_effects, write_explorer, write_first_look, write_report
from sae_lens_crosscoder.report.paper.numbers import paper_numbers
from sae_lens_crosscoder.report.paper.page import paper_figures, write_paper_page
from sae_lens_crosscoder.workflows import first_look
from tests.causal.conftest import random_crosscoder
from tests.report.explorations import make_exploration
from tests.report.made_up import diagnoses, make_table
from tests.report.paper_tables import make_latents, make_pairs, paper
from tests.report.test_effects import make_effects

NAMES = ("batchtopk_with_a_long_name", "l1")
LONG = "a_name_that_has_no_place_at_which_a_line_may_break_" * 3
CONCEPT_COLUMNS = (
    *("crosscoder", "kind_of_change", "latent", "share", "coverage", "delta_contrast", "auroc", "on_positive"),
    *("on_negative", "delta_norm", "nu_error", "nu_reconstruction", "probe", "verdict"),
)
IN_NOTEBOOK = '<!DOCTYPE html><meta name="viewport" content="width=device-width"><style>{}</style><body>{}'
PAPER = ":root { color-scheme: light dark }"


def write_every_page(folder):
    """Paths by name; pages of the explorer with the part of their address behind the #."""
    pair = slc.HookedModelPair.from_pretrained("tiny-base", "tiny-chat")
    pages = {name: (path, "") for name, path in _reports(folder).items()}
    pages["first_look"] = (_first_look(pair, folder / "first_look.html"), "")
    explorations = {name: make_exploration(folder, 60, seed=seed) for seed, name in enumerate((*NAMES, "third"))}
    path = write_explorer(explorations, folder / "explorer.html", title="Explorer")
    latent = next(j for j in range(60) if not explorations[NAMES[0]].table.dead[j])
    pages |= {"explorer": (path, "#all=1&delta_norm=0..1&q=w"), "explorer, a latent": (path, f"#latent={latent}")}
    for name, view in _views(pair, explorations[NAMES[0]], latent).items():
        path = folder / f"{name}.html"
        path.write_text(IN_NOTEBOOK.format(PAPER, view._repr_html_()), encoding="utf-8")
        pages[name] = (path, "")
    return pages


def _reports(folder):
    tables = {name: make_table(300, seed) for seed, name in enumerate(NAMES)}
    named = {"class": "turned", "rho": 0.31, "q_rho": 0.01, "q_written": 0.02, "written": 0.01, "named": True}
    tables[NAMES[0]] = tables[NAMES[0]].assign(**named)
    made = diagnoses(tables)
    for each in made.values():
        each.manifest.update(models=[f"organisation/{LONG}", "b"], sources={LONG: LONG})
    comparison = pd.DataFrame(
        {name: {"fraction of variance explained of chat": "0.987", "L0": "1,234.5"} for name in (*NAMES, "x", "y", "z")}
    )
    row = ["topk", "condition", 12_345, *[0.123] * 9, "chat", "latent_decoupling"]
    concepts = pd.DataFrame([row] * 3, columns=CONCEPT_COLUMNS, index=["answers harmful requests", "b", "c"])
    concepts.index.name = "concept"
    paper_tables = {name: paper(make_latents(seed=seed), make_pairs()) for seed, name in enumerate(NAMES)}
    figures = paper_figures(paper_tables)
    return {
        "report": write_report(made, folder / "report.html", comparison, concepts, notes=["A note."]),
        "paper": write_paper_page(paper_tables, folder / "paper.html", paper_numbers(paper_tables), figures),
        "effects": write_effects({name: make_effects() for name in NAMES}, folder / "effects.html"),
    }


def _first_look(pair, path):
    prompts = [messages[:1] for messages in dialogues(16, 0, "held_out")]
    look = first_look(pair, prompts, n_resamples=5)
    return write_first_look(dataclasses.replace(look, positions=look.positions.assign(context=LONG)), path)


def _views(pair, exploration, latent):
    crosscoder = random_crosscoder((96, 96), dtype="float32", threshold=0.1, d_sae=60)
    metadata = crosscoder.cfg.metadata
    metadata.model_name, metadata.chat_model_name, metadata.hook_name = "tiny-base", "tiny-chat", TINY_HOOK
    tokens = torch.arange(5, 45)[None]
    return {
        "compare": slc.compare(crosscoder, pair, tokens, latents=exploration.table),
        "latent": slc.latent(crosscoder, latent, exploration),
    }
