"""Laws of the page of a first look: curves and tables are the result's, texts are inert, nothing asks the network."""

import base64
import dataclasses
import hashlib
import json
import re

import numpy as np
import pytest

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.models.tiny import dialogues
from sae_lens_crosscoder.report import hook_curves, write_first_look
from sae_lens_crosscoder.workflows import first_look
from tests.report.made_up import HOSTILE, Page


@pytest.fixture(scope="module")
def look():
    pair = slc.HookedModelPair.from_pretrained("tiny-base", "tiny-chat")
    return first_look(pair, [messages[:1] for messages in dialogues(16, 0, "held_out")], n_resamples=50)


def test_curves_are_the_tables(look):
    figure = hook_curves(look)
    drawn = {trace.name: list(trace.y) for trace in figure.data if trace.showlegend is not False}
    columns = {"patch at the last token": "share_last", "patch at all tokens": "share_all"}
    columns |= {"size at the last token": "difference_last", "size, ordinary tokens": "difference_all"}
    for name, column in columns.items():
        assert drawn[name] == pytest.approx(look.hooks[column].tolist())
    band = [trace for trace in figure.data if trace.showlegend is False]
    assert list(band[0].y) == pytest.approx(look.hooks.share_last_low.tolist())
    assert list(band[1].y) == pytest.approx(look.hooks.share_last_high.tolist())
    assert {line.x0 for line in figure.layout.shapes} == {"block 3"}
    assert figure.layout.legend.traceorder == "normal"


def test_without_a_recommendation_no_line_is_drawn_and_the_page_says_so(look, tmp_path):
    none = dataclasses.replace(look.recommendation, hook_name=None, confidence="none", reason="They hardly differ.")
    nothing = dataclasses.replace(
        look,
        recommendation=none,
        directions=look.directions.iloc[:0],
        hooks=look.hooks.assign(share_last_low=np.nan, share_last_high=np.nan, special_base=np.nan),
    )
    assert len(hook_curves(nothing).layout.shapes) == 0
    page = Page(write_first_look(nothing, tmp_path / "look.html").read_text(encoding="utf-8"))
    assert "No hook is recommended." in page.text
    assert "They hardly differ." in page.text
    assert "Directions without a crosscoder" not in page.text


def test_the_page_shows_the_result_makes_texts_inert_and_asks_for_nothing(look, tmp_path):
    hostile = dataclasses.replace(look, positions=look.positions.assign(context=f"a\n{HOSTILE}"))
    page = Page(write_first_look(hostile, tmp_path / "new" / "look.html", title=HOSTILE).read_text(encoding="utf-8"))
    assert look.recommendation.hook_name in page.text
    assert look.recommendation.reason in page.text
    shares = [cells[1] for cells in page.rows if cells[0].startswith("block ")]
    assert shares == [f"{share:.2f}" for share in look.hooks.share_last]
    assert "a\u21b5" in page.text
    assert {"changed - unchanged", "component 1"} <= {cell for cells in page.rows for cell in cells}
    for tag, attrs in page.elements:
        assert tag not in ("img", "iframe", "object", "embed", "base", "form", "a")
        assert not {"src", "srcset", "action"} & set(attrs)
    (policy,) = (attrs["content"] for _, attrs in page.elements if "http-equiv" in attrs)
    for script in page.scripts:
        assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy
    (figure,) = page.figures
    assert not re.search(r"<(script|img)\b", json.dumps(figure))
