"""Turned latents: the planted one is named, random turns and splits that do not matter are not."""

from dataclasses import replace

import pandas as pd
import pytest
import torch
from scipy.stats import kstest

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.activations import ContrastRows
from sae_lens_crosscoder.analysis.changed.changed import Changed
from sae_lens_crosscoder.analysis.changed.decoys import RandomMap, size_of_difference
from sae_lens_crosscoder.analysis.changed.gate import (
    Gate,
    control_splits,
    gate,
    relative_change,
    validate_enough_splits,
)
from sae_lens_crosscoder.analysis.changed.name_latents import name_latents
from sae_lens_crosscoder.analysis.changed.rho import rho, rho_of
from sae_lens_crosscoder.analysis.changed.significance import decoy_q_values, false_discovery_rates, tail_p_values
from sae_lens_crosscoder.analysis.changed.written import written_contrast, written_energy, written_mean
from sae_lens_crosscoder.analysis.contrasts.group_differences import group_differences
from sae_lens_crosscoder.stacking import StackedLayout
from tests.analysis.changed_worlds import CONCEPT, D_MODEL, World
from tests.analysis.conftest import lists, random_activations, random_crosscoder
from tests.reference import changed as reference

LAYOUT = StackedLayout((3, 3))


def layout_of(world):
    return world.crosscoder.layout


def close(found, expected):
    torch.testing.assert_close(found, torch.tensor(expected, dtype=found.dtype))


def test_rho_equals_the_reference_in_the_trained_space():
    crosscoder = random_crosscoder(scales=(1.0, 5.0))
    base, chat = (decoder.tolist() for decoder in crosscoder.decoders)
    close(rho_of(crosscoder), reference.rho(base, [[5 * value for value in row] for row in chat]))


def test_rho_is_symmetric_and_blind_to_units():
    base, chat = random_activations(5, seed=1, d_in=4), random_activations(5, seed=2, d_in=4)
    torch.testing.assert_close(rho(base, chat), rho(chat, base))
    torch.testing.assert_close(rho(base, chat), rho(3 * base, 3 * chat))
    assert torch.equal(rho(base, base), torch.zeros(5, dtype=torch.float64))
    assert rho(torch.zeros(1, 2), torch.zeros(1, 2)).isnan().all()
    assert rho_of(random_crosscoder(d_models=(2, 4))).isnan().all()


def test_energies_and_means_equal_the_reference():
    crosscoder, rows = random_crosscoder(), random_activations(300)
    x, f, decoders, _ = lists(crosscoder, rows)
    of_base, of_chat = ([row[m] for row in decoders] for m in (0, 1))
    base_rows, chat_rows = ([row[m] for row in x] for m in (0, 1))
    close(written_energy(crosscoder, rows), reference.written_energy(f, base_rows, chat_rows, of_base, of_chat))
    u, error = written_mean(crosscoder, group_differences(crosscoder, rows[:200], rows[200:]))
    expected = reference.written_mean(
        f[:200], f[200:], (base_rows[:200], base_rows[200:]), (chat_rows[:200], chat_rows[200:]), of_base, of_chat
    )
    close(u, expected)
    assert (error > 0).all()


def test_all_latents_together_write_the_whole_energy_of_the_difference():
    world = World(angle=1.0)
    base, chat = layout_of(world).split(world.rows)
    total = (chat - base).square().sum() / base.square().sum()
    torch.testing.assert_close(written_energy(world.crosscoder, world.rows).sum(), total)


def test_p_values_equal_the_reference():
    generator = torch.Generator().manual_seed(0)
    decoys, values = torch.randn(300, generator=generator).double(), 2 * torch.randn(50, generator=generator).double()
    close(tail_p_values(values, decoys), [reference.tail_p(value, decoys.tolist()) for value in values.tolist()])
    p_values = torch.rand(40, generator=generator).double() ** 3
    close(false_discovery_rates(p_values), reference.benjamini_hochberg(p_values.tolist()))


@pytest.mark.parametrize("draw", [torch.rand, lambda n, generator: -torch.rand(n, generator=generator).log()])
def test_p_values_are_uniform_under_the_null(draw):
    generator = torch.Generator().manual_seed(3)
    p_values = tail_p_values(draw(2000, generator=generator), draw(6000, generator=generator))
    body = p_values[p_values > 0.05]
    assert kstest((body - 0.05) / 0.95, "uniform").pvalue > 0.01
    assert (p_values <= 0.05).double().mean() == pytest.approx(0.05, abs=0.015)


def test_nothing_is_found_among_values_like_the_decoys():
    generator = torch.Generator().manual_seed(5)
    n_found = [
        int((decoy_q_values(torch.rand(500, generator=generator), torch.rand(1500, generator=generator)) <= 0.05).sum())
        for _ in range(20)
    ]
    assert sum(n > 0 for n in n_found) <= 3


def test_a_value_far_beyond_few_decoys_is_found_and_undefined_ones_stay_so():
    decoys = torch.rand(600)
    values = torch.cat([torch.rand(199), torch.tensor([3.0, torch.nan])])
    q_values = decoy_q_values(values, decoys)
    assert q_values[199] < 0.05
    assert q_values[200].isnan()
    assert decoy_q_values(torch.zeros(3), torch.zeros(10)).tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match="no finite value"):
        tail_p_values(values, torch.tensor([torch.nan]))


def test_the_map_moves_activations_by_its_size():
    base = random_activations(500, d_in=20)
    for rank in (2, 8):
        stacked = RandomMap.draw(base, 0.07, rank, seed=rank).stack(base)
        first, second = stacked.split(20, dim=1)
        assert torch.equal(first, base)
        assert ((second - first).norm(dim=1) / first.norm(dim=1)).median().item() == pytest.approx(0.07)
        assert torch.linalg.matrix_rank(second - first) == rank


def test_the_size_is_the_largest_median_of_rows_that_fine_tuning_was_not_aimed_at():
    world = World(angle=1.5, size=0.05)
    size = size_of_difference(world.rows[~world.positive], [world.contrast], layout_of(world))
    assert size == pytest.approx(0.05, rel=0.3)
    all_rows = size_of_difference(world.rows, [world.contrast], layout_of(world))
    assert all_rows >= size
    with pytest.raises(ValueError, match="nothing to compare decoys"):
        size_of_difference(torch.ones(4, 6), [], LAYOUT)


def test_the_ratio_of_the_gate_equals_the_reference():
    rows = random_activations(50)
    base, chat = ([row.tolist() for row in part] for part in LAYOUT.split(rows))
    expected = reference.relative_change((base[:20], base[20:]), (chat[:20], chat[20:]))
    assert relative_change(rows[:20], rows[20:], LAYOUT) == pytest.approx(expected)


@pytest.mark.parametrize(("ratio", "control", "passes"), [(0.5, 0.1, True), (0.19, 0.1, False), (0.5, 0.6, False)])
def test_the_gate_asks_for_a_rank_among_splits_and_for_twice_the_change_of_everything(ratio, control, passes):
    found = Gate(ratio, (control,) * 39, size=0.1)
    assert found.times == pytest.approx(ratio / 0.1)
    assert found.is_passed == passes


def test_control_splits_follow_the_base_model_alone():
    rows = random_activations(60)
    for upper, lower in control_splits(rows, LAYOUT):
        assert (len(upper), len(lower)) == (18, 42)
    changed = rows.clone()
    changed[:, 3:] = 0
    pairs = zip(control_splits(rows, LAYOUT), control_splits(changed, LAYOUT), strict=True)
    assert all(torch.equal(a[:, :3], b[:, :3]) for (a, _), (b, _) in pairs)
    along = control_splits(rows, LAYOUT)[0][0][:, :3].mean(dim=0) - rows[:, :3].mean(dim=0)
    first = torch.linalg.svd(rows[:, :3] - rows[:, :3].mean(dim=0)).Vh[0]
    assert abs(torch.cosine_similarity(along, first, dim=0)) > 0.7


@pytest.mark.parametrize("seed", range(4))
def test_the_turned_concept_is_named_and_nothing_else(seed):
    world = World(angle=1.0, seed=10 * seed)
    readings, size = world.decoys()
    changed = name_latents(world.crosscoder, [world.contrast], readings, size)
    assert changed.named == [CONCEPT]
    row = changed.latents.loc[CONCEPT]
    assert row["class"] == "turned"
    assert row["label"] == "shared"  # Delta_norm cannot see it
    contrast = changed.contrasts.loc["concept"]
    assert contrast["gate"]
    assert contrast["share_named"] == pytest.approx(1, abs=0.2)
    assert contrast["coverage"] == pytest.approx(1)
    assert contrast["best_auroc"] == 1
    assert changed.conclusion.startswith(f"1 of {changed.n_turned} turned latents carries what fine-tuning changed")
    assert "against 3 decoy pairs" in str(changed)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("rank", [8, 40])
def test_a_random_map_names_nothing(seed, rank):
    world = World(angle=0.0, seed=10 * seed, rank=rank)
    readings, size = world.decoys()
    changed = name_latents(world.crosscoder, [world.contrast], readings, size)
    assert changed.named == []
    assert changed.conclusion.startswith(("no difference detected along this contrast", "undecided"))


@pytest.mark.parametrize(
    ("passes", "q_rho", "coverage", "said"),
    [
        (False, 0.01, 0.9, "no difference detected along this contrast: fine-tuning changes other splits"),
        (True, 0.5, 0.9, "no difference detected: fine-tuning changes 'concept' 1.3 times as much as activations"),
        (True, 0.5, 0.4, "undecided: fine-tuning changed 'concept' more than other splits of the prompts, but no"),
        (True, 0.01, 0.9, "undecided: fine-tuning changed 'concept' more than other splits of the prompts, but no"),
    ],
)
def test_that_nothing_differs_is_said_only_where_latents_could_have_shown_it(passes, q_rho, coverage, said):
    """Latents that turned and are not named, or a change that latents do not write, leave the question open."""
    world = World(angle=0.0)
    changed = name_latents(world.crosscoder, [world.contrast], *world.decoys())
    contrasts = changed.contrasts.assign(gate=passes, coverage=coverage, ratio=1.3)
    changed = replace(changed, contrasts=contrasts, latents=changed.latents.assign(q_rho=q_rho, named=False))
    assert changed.conclusion.startswith(said)
    assert changed.conclusion.endswith("of the norm)")


def test_without_the_gate_nothing_is_named_whatever_the_latents_say():
    """Fine-tuning also changes what the negative prompts differ in most, and more."""
    world = World(angle=1.0)
    readings, size = world.decoys()
    rows = world.rows.clone()
    base, chat = layout_of(world).split(rows)
    negative = base[~world.positive]
    leading = torch.linalg.svd(negative - negative.mean(dim=0)).Vh[:6]
    chat += 5 * base @ leading.T @ leading
    contrast = replace(world.contrast, activations=rows)
    assert not gate(contrast, layout_of(world), size).is_passed
    changed = name_latents(world.crosscoder, [contrast], readings, size)
    assert changed.named == []
    assert changed.latents["q_written"].isna().all()
    assert "p 0." in changed.conclusion or "p 1." in changed.conclusion


def test_q_is_corrected_for_the_number_of_contrasts():
    world = World(angle=1.0)
    readings, size = world.decoys()
    twice = [replace(decoy, written={**decoy.written, "again": decoy.written["concept"]}) for decoy in readings]
    contrasts = [world.contrast, replace(world.contrast, name="again")]
    one = name_latents(world.crosscoder, [world.contrast], readings, size)
    two = name_latents(world.crosscoder, contrasts, twice, size)
    doubled = (2 * one.effects["q_written"]).clip(upper=1)
    pd.testing.assert_series_equal(two.effects.query("contrast == 'again'")["q_written"], doubled)
    torch.testing.assert_close(two.latents.written.to_numpy(), 2 * one.latents.written.to_numpy())


def test_nothing_held_out_decides_what_is_named():
    world = World(angle=1.0)
    readings, size = world.decoys()
    rows = world.rows.clone()
    rows[world.contrast.held_out] = random_activations(int(world.contrast.held_out.sum()), d_in=2 * D_MODEL)
    contrast = replace(world.contrast, activations=rows)
    torch.testing.assert_close(
        written_contrast(world.crosscoder, contrast), written_contrast(world.crosscoder, world.contrast)
    )
    assert name_latents(world.crosscoder, [contrast], readings, size).named == [CONCEPT]


def test_it_is_saved_and_loaded(tmp_path):
    world = World(angle=1.0)
    readings, size = world.decoys()
    changed = name_latents(world.crosscoder, [world.contrast], readings, size)
    again = Changed.load(changed.save(tmp_path / "folder"))
    for name in ("latents", "effects", "contrasts"):
        pd.testing.assert_frame_equal(getattr(again, name), getattr(changed, name))
    assert (again.conclusion, again.named, again.manifest) == (changed.conclusion, changed.named, changed.manifest)
    (tmp_path / "folder" / "changed_effects.parquet").unlink()
    with pytest.raises(ValueError, match=r"has no changed_effects\.parquet"):
        Changed.load(tmp_path / "folder")


def test_too_few_negative_prompts_for_the_gate_are_refused():
    rows = random_activations(40, d_in=2 * D_MODEL)
    positive = torch.arange(40) < 20
    held_out = torch.arange(40) % 2 == 0
    contrast = ContrastRows(name="a", activations=rows, positive=positive, held_out=held_out)
    with pytest.raises(ValueError, match="allows 9 control splits, but needs 19"):
        validate_enough_splits(contrast, StackedLayout((D_MODEL, D_MODEL)))


def test_diagnose_shows_rho():
    crosscoder = random_crosscoder()
    diagnosis = slc.diagnose(crosscoder, slc.EvalData(activations=random_activations(300)))
    torch.testing.assert_close(torch.tensor(diagnosis.latents["rho"].to_numpy()), rho_of(crosscoder))
