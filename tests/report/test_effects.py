"""Laws of the effects page: bars and intervals are the table's, names are text, and nothing asks the network."""

import base64
import hashlib
import json
import re

import numpy as np
import pandas as pd
import pytest

from sae_lens_crosscoder.report import effects_bars, write_effects
from tests.report.made_up import HOSTILE, Page


def make_effects(seed=0):
    rng = np.random.default_rng(seed)
    setups = [
        ("none", ""),
        ("all", "replace"),
        ("chat", ""),
        ("top_nu", "replace"),
        ("top_nu", "add"),
        (HOSTILE, "add"),
    ]
    rows = []
    for setup, variant in setups:
        for window in ("all", "token 1", "tokens 2-10", "tokens 11+"):
            kl = rng.exponential(2)
            row = {"setup": setup, "variant": variant, "n_latents": 3, "window": window, "kl_nats": kl}
            row |= {"kl_nats_low": 0.5 * kl, "kl_nats_high": 1.7 * kl, "n_tokens": 4321, "n_conversations": 77}
            rows.append(row)
    return pd.DataFrame(rows)


@pytest.fixture
def effects():
    return {"l1": make_effects(0), "batchtopk": make_effects(1)}


def test_bars_and_intervals_are_those_of_the_table_but_for_the_chat_models_own(effects):
    figure = effects_bars(effects)
    drawn = {}
    panels = {"x": ("l1", "tokens 2-10"), "x2": ("l1", "all"), "x3": ("batchtopk", "tokens 2-10")}
    panels["x4"] = ("batchtopk", "all")
    for bar in figure.data:
        variant = "" if bar.name == "no latents chosen" else bar.name
        for i, setup in enumerate(bar.x):
            ends = bar.y[i] - bar.error_y.arrayminus[i], bar.y[i] + bar.error_y.array[i]
            drawn[(*panels[bar.xaxis], str(setup), variant)] = (bar.y[i], *ends)
    assert not [key for key in drawn if key[2] == "chat"]
    for name, table in effects.items():
        kept = table[(table.setup != "chat") & table.window.isin(["all", "tokens 2-10"])]
        for row in kept[kept.setup != HOSTILE].itertuples():
            expected = (row.kl_nats, row.kl_nats_low, row.kl_nats_high)
            assert drawn[name, row.window, row.setup, row.variant] == pytest.approx(expected)
    assert len(drawn) == 2 * 2 * 5
    assert sum(bar.showlegend for bar in figure.data) == 3


def test_setups_stand_in_order_and_their_bars_side_by_side_or_alone_in_the_middle(effects):
    figure = effects_bars({"l1": effects["l1"]})
    assert list(figure.layout.xaxis.categoryarray)[:4] == ["none", "all", "top_nu", figure.data[2].x[-1]]
    left = {}
    for bar in figure.data[:3]:
        for setup, offset in zip(bar.x, bar.offset, strict=True):
            left.setdefault(str(setup), []).append(offset)
    width = figure.data[0].width
    assert left["none"] == left["all"] == [-width / 2]
    assert left["top_nu"] == [-width, 0.0]
    none = effects["l1"].set_index(["setup", "window"]).kl_nats["none"]
    assert [shape.y0 for shape in figure.layout.shapes] == [none["tokens 2-10"], none["all"]]


def test_a_window_without_tokens_says_so(effects):
    nothing = effects["l1"].assign(kl_nats=np.nan, kl_nats_low=np.nan, kl_nats_high=np.nan)
    assert [a.text for a in effects_bars({"l1": nothing}).layout.annotations].count("tokens: none") == 2


def test_contrasts_are_shown_below_the_table_of_their_crosscoder(effects, tmp_path):
    row = {"setup": "top_nu", "against": "bottom_nu", "variant": "add", "window": "all", "kl_nats_difference": -0.25}
    contrasts = pd.DataFrame([{**row, "p_value": 0.001}, {**row, "kl_nats_difference": np.nan, "p_value": np.nan}])
    path = write_effects(effects, tmp_path / "e.html", {"batchtopk": contrasts})
    rows = Page(path.read_text(encoding="utf-8")).rows
    shown = rows[1 + len(effects["l1"]) + 1 + len(effects["batchtopk"]) :]
    assert [cells[-1] for cells in shown] == ["p_value", "0.001"]  # and none for a window without tokens
    assert [cells[0] for cells in shown] == ["setup", "top_nu"]


def test_errors_say_what_is_missing(effects):
    for draw in (effects_bars, lambda tables: write_effects(tables, "never.html")):
        with pytest.raises(ValueError, match="`effects` is empty"):
            draw({})
        with pytest.raises(ValueError, match="'l1' has no column window"):
            draw({"l1": effects["l1"].drop(columns="window")})


def test_the_page_shows_every_row_and_asks_for_nothing(effects, tmp_path):
    path = write_effects({HOSTILE: effects["l1"]}, tmp_path / "new" / "e.html", title=HOSTILE)
    page = Page(path.read_text(encoding="utf-8"))
    assert len(page.rows) == 1 + len(effects["l1"])
    assert page.rows[1][0] == "none"
    assert page.rows[1][4] == f"{effects['l1'].kl_nats[0]:.2f}"
    assert "4,321" in page.rows[1]
    for tag, attrs in page.elements:
        assert tag not in ("img", "iframe", "object", "embed", "base", "form", "a")
        assert not {"src", "srcset", "action"} & set(attrs)
    (policy,) = (attrs["content"] for _, attrs in page.elements if "http-equiv" in attrs)
    for script in page.scripts:
        assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy
    (figure,) = page.figures
    assert not re.search(r"<(script|img)\b", json.dumps(figure))
    assert [tag for tag, _ in page.elements].count("script") == 3
