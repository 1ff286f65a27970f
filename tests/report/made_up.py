"""Made-up latent tables and diagnoses, hostile names, and a reader of HTML pages."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd

from sae_lens_crosscoder.analysis.diagnosis.classes import label
from sae_lens_crosscoder.analysis.diagnosis.diagnosis import Diagnosis
from sae_lens_crosscoder.analysis.diagnosis.verdict import verdicts
from sae_lens_crosscoder.analysis.use.result import LatentUse

HOSTILE = "<script>alert(1)</script>\"'&quot;\u202e\0gpj</b><img src=http://x onerror=alert(2)>"
BIDI = "\u202e"


def make_table(n=1000, seed=0, bounds="signed"):
    """Latents of every class, some dead, some without nu, some with a nu beyond the axes."""
    rng = np.random.default_rng(seed)
    centre = rng.choice([0.03, 0.25, 0.5, 0.75, 0.97], n, p=[0.1, 0.1, 0.5, 0.1, 0.2])
    table = pd.DataFrame({"delta_norm": (centre + rng.normal(0, 0.03, n)).clip(0, 1)})
    table.index.name = "latent"
    table["n_active"] = rng.integers(1, 2000, n) * (rng.random(n) > 0.1)
    table["dead"] = table.n_active == 0
    table["max_activation"] = rng.exponential(3, n)
    for nu in ("nu_error", "nu_reconstruction"):
        value = rng.normal(0.3, 0.5, n)
        value[(rng.random(n) < 0.1) | table.dead] = np.nan
        table[nu], table[f"{nu}_low"], table[f"{nu}_high"] = value, value - 0.1, value + 0.1
    table["nu_free"], table["q_value"] = rng.random(n), np.where(rng.random(n) < 0.5, rng.random(n), np.nan)
    table["label"] = [label(delta) for delta in table.delta_norm]
    judged = (table.label.tolist(), *(table[name].to_numpy() for name in ("n_active", "nu_error", "nu_reconstruction")))
    table["verdict"] = verdicts(*judged, bounds=bounds)
    return table


def make_use(n, seed=0, groups=("user", "assistant")):
    """The use of n latents, some of them more by one model."""
    rng = np.random.default_rng(seed)
    ratio = rng.choice([-1.0, 0.0, 1.0], n, p=[0.1, 0.8, 0.1]) + rng.normal(0, 0.02, n)
    numbers = {name: rng.random(n) for name in ("rate_base", "rate_chat", "magnitude_base", "magnitude_chat")}
    latents = pd.DataFrame(numbers | {"log_use_ratio": ratio, "q_use": rng.random(n)})
    latents["log_use_ratio_low"], latents["log_use_ratio_high"] = ratio - 0.1, ratio + 0.1
    latents["moved_by_base"], latents["moved_by_chat"] = rng.random(n), rng.random(n)
    latents["use"] = np.select([ratio < -0.5, ratio > 0.5], ["more_in_base", "more_in_chat"], "equal")
    latents.index.name = "latent"
    rates = [latents[["rate_base", "rate_chat"]] / (g + 2) for g in range(len(groups))]
    by_group = pd.concat([table.assign(group=group) for group, table in zip(groups, rates, strict=True)])
    manifest = {"use_of": ["base", "chat"], "groups": list(groups), "n_tokens": 12345, "n_null_runs": 0}
    return LatentUse(latents, by_group, manifest)


def make_manifest(bounds="signed"):
    return {
        "conclusion": "7 latents & more",
        "bounds": bounds,
        "models": ["base", "chat"],
        "hook_name": "h",
        "n_tokens": 12345,
        "versions": {"torch": "2"},
    }


def diagnoses(tables, bounds="signed"):
    return {name: Diagnosis(table, make_manifest(bounds)) for name, table in tables.items()}


def without_nu(table):
    return table.assign(nu_error=np.nan, nu_reconstruction=np.nan)


def dead(table):
    return without_nu(table).assign(dead=True, n_active=0, verdict="dead")


def texts(figure):
    return [re.sub("<[^>]*>", " ", annotation.text) for annotation in figure.layout.annotations]


class Page(HTMLParser):
    """The page as a browser reads it: elements with attributes, text, scripts, figures, and the cells of its tables."""

    def __init__(self, source):
        super().__init__()
        self.elements, self.text, self.styles, self.scripts, self.figures, self.rows = [], "", "", [], [], []
        self.raw, self.in_cell = None, False
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self.raw = dict(attrs).get("type", tag)
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.in_cell = True
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        if tag in ("script", "style"):
            self.raw = None
        elif tag in ("td", "th"):
            self.in_cell = False

    def handle_data(self, data):
        if self.raw == "style":
            self.styles += data
        elif self.raw == "script":
            self.scripts.append(data)
        elif self.raw == "application/json":
            self.figures.append(json.loads(data))
        else:
            self.text += data
            if self.in_cell:
                self.rows[-1][-1] += data
