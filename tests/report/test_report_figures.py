"""Laws of the report's figures: they show what the table says, and count what they leave out."""

import numpy as np
import pandas as pd
import pytest

from sae_lens_crosscoder.analysis.diagnosis.classes import CLASS_BORDERS, label
from sae_lens_crosscoder.analysis.diagnosis.diagnosis import Diagnosis
from sae_lens_crosscoder.report import delta_norm_histogram, nu_scatter, write_report
from sae_lens_crosscoder.report.figures.delta_norm_and_nu import REGIONS
from tests.report.made_up import dead, diagnoses, make_table, texts, without_nu


def test_bars_add_up_to_the_live_latents_of_each_class(tables):
    figure = delta_norm_histogram(diagnoses(tables))
    assert len(figure.data) == len(tables)
    for bars, table in zip(figure.data, tables.values(), strict=True):
        assert len(bars.y) == 50
        x, y = np.asarray(bars.x), np.asarray(bars.y)
        alive = table[~table.dead]
        for name, low, high in (("base_only", 0, 0.1), ("shared", 0.4, 0.6), ("chat_only", 0.9, 1)):
            assert y[(x > low) & (x < high)].sum() == (alive.label == name).sum() > 0
        assert y.sum() == len(alive) < len(table)


def test_a_bin_counts_its_latents(tables):
    bars = delta_norm_histogram(diagnoses(tables)).data[0]
    alive = tables["l1"][~tables["l1"].dead]
    for (low, high), y in zip(bars.customdata, bars.y, strict=True):
        assert y == sum(low <= delta < high or delta == high == 1 for delta in alive.delta_norm)


def test_histogram_says_how_many_are_left_out_and_how_many_each_class_has(tables):
    table = tables["l1"]
    table.loc[table.index[table.label == "other"][:3], ["delta_norm", "label"]] = [np.nan, "undefined"]
    said = texts(delta_norm_histogram(diagnoses({"l1": table})))
    alive = table[~table.dead]
    n_undefined = alive.delta_norm.isna().sum()
    assert f"{table.dead.sum()} dead left out, {n_undefined} without Delta_norm left out" in said[0]
    n_of_class = [text.split() for text in said[1:6]]
    assert [name for name, _ in n_of_class] == ["base_only", "other", "shared", "other", "chat_only"]
    assert sum(int(n) for _, n in n_of_class) == alive.delta_norm.notna().sum()
    assert n_of_class[4][1] == str((alive.label == "chat_only").sum())


def test_the_drawn_borders_are_where_the_label_changes(tables):
    for border, left, right in zip(CLASS_BORDERS, REGIONS[:-1], REGIONS[1:], strict=True):
        assert (label(border - 1e-9), label(border + 1e-9)) == (left, right)
    drawn = [shape.x0 for shape in delta_norm_histogram(diagnoses({"l1": tables["l1"]})).layout.shapes]
    assert drawn == list(CLASS_BORDERS)


def test_points_are_the_latents_of_their_verdict(tables):
    figure = nu_scatter(diagnoses({"l1": tables["l1"]}))
    table = tables["l1"].dropna(subset=["nu_error", "nu_reconstruction"])
    expected = {"shared": table[table.label == "shared"]}
    chat_only = table[table.label == "chat_only"]
    expected |= {f"chat_only: {name}": chat_only[chat_only.verdict == name] for name in set(chat_only.verdict)}
    assert {trace.name for trace in figure.data} == set(expected)
    assert len(expected) == 5
    for trace in figure.data:
        rows = expected[trace.name]
        latent, delta, n_active = np.asarray(trace.customdata).T
        np.testing.assert_array_equal(latent, rows.index)
        np.testing.assert_array_equal(delta, rows.delta_norm)
        np.testing.assert_array_equal(n_active, rows.n_active)
        np.testing.assert_array_equal(trace.x, rows.nu_error)
        np.testing.assert_array_equal(trace.y, rows.nu_reconstruction)


def test_scatter_counts_what_is_not_to_be_seen(tables):
    (title,) = (text for text in texts(nu_scatter(diagnoses({"l1": tables["l1"]}))) if "l1" in text)
    beyond = []
    for name in ("shared", "chat_only"):
        latents = tables["l1"][tables["l1"].label == name]
        missing = latents.nu_error.isna() | latents.nu_reconstruction.isna()
        assert f"{name}: {(~missing).sum()} drawn, {missing.sum()} without nu" in title
        inside = latents.nu_error.between(-0.5, 1.5) & latents.nu_reconstruction.between(-0.5, 1.5)
        beyond.append(f"{(~inside & ~missing).sum()} {name}")
    assert f"beyond the axes: {', '.join(beyond)}" in title
    assert not any(text.startswith("0 ") for text in beyond)


def test_a_large_cloud_is_thinned_and_says_so_and_chat_only_is_not():
    table = make_table(16_000)
    figure = nu_scatter(diagnoses({"big": table}))
    n_drawn = {trace.name.split(":")[0]: 0 for trace in figure.data}
    for trace in figure.data:
        n_drawn[trace.name.split(":")[0]] += len(trace.x)
    has_nu = table.dropna(subset=["nu_error", "nu_reconstruction"])
    assert n_drawn == {"shared": 5000, "chat_only": (has_nu.label == "chat_only").sum()}
    assert f"5,000 of {(has_nu.label == 'shared').sum():,} drawn" in texts(figure)[-2]


@pytest.mark.parametrize("bounds", ["signed", "absolute"])
def test_the_box_holds_the_genuine_latents_and_no_artifact(bounds):
    tables = {name: make_table(seed=seed, bounds=bounds) for seed, name in enumerate(("l1", "batchtopk"))}
    both = diagnoses(tables, bounds)
    for name, table in tables.items():
        figure = nu_scatter(diagnoses({name: table}, bounds))
        (box,) = figure.layout.shapes
        assert (box.x1, box.y1) == (0.2, 0.5)
        for trace in figure.data:
            inside = (box.x0 < trace.x) & (trace.x < box.x1) & (box.y0 < trace.y) & (trace.y < box.y1)
            if trace.name == "chat_only: chat_specific":
                assert inside.all()
                assert len(inside) > 10
            elif trace.name in ("chat_only: complete_shrinkage", "chat_only: latent_decoupling"):
                assert not inside.any()
    assert len(nu_scatter(both).layout.shapes) == texts(nu_scatter(both)).count("genuine") == 2


@pytest.mark.parametrize("spoil", [dead, without_nu, lambda table: table[table.label == "base_only"], lambda t: t[:0]])
def test_an_empty_class_says_none(tables, spoil, tmp_path):
    table = spoil(tables["l1"])
    spoilt = {"x": Diagnosis(table, {})}
    assert any("chat_only latents with both nu: none" in text for text in texts(nu_scatter(spoilt)))
    histogram = texts(delta_norm_histogram(spoilt))
    n_chat_only = ((table.label == "chat_only") & ~table.dead).sum()
    assert f"chat_only {n_chat_only or 'none'}" in histogram
    assert ("live latents: none" in histogram) == bool(table.dead.all())
    assert write_report(spoilt, tmp_path / "r.html", pd.DataFrame({"x": {}}), pd.DataFrame()).exists()


@pytest.mark.parametrize("draw", [delta_norm_histogram, nu_scatter])
def test_errors_say_what_is_missing(tables, draw):
    with pytest.raises(ValueError, match="`diagnoses` is empty"):
        draw({})
    with pytest.raises(ValueError, match="'l1' has no column delta_norm, label"):
        draw(diagnoses({"l1": tables["l1"].drop(columns=["delta_norm", "label"])}))
