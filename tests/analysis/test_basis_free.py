"""Models of different widths: verdicts by lengths alone, their formulas, their truth, and that they are named."""

import warnings

import pandas as pd
import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.analysis.diagnosis.conclusion import Evidence, conclusion
from sae_lens_crosscoder.analysis.diagnosis.null_runs import q_values
from sae_lens_crosscoder.analysis.diagnosis.verdict import BASIS_FREE, nu_free_of_other
from sae_lens_crosscoder.analysis.latent_scaling.basis_free import ReconstructedDirections
from sae_lens_crosscoder.report.explorer.records import Exploration
from sae_lens_crosscoder.report.export.model_card import model_card
from sae_lens_crosscoder.report.figures.delta_norm_and_nu import nu_scatter
from sae_lens_crosscoder.report.figures.nu_marginals import nu_marginals
from sae_lens_crosscoder.report.notebook.facts import facts_about
from sae_lens_crosscoder.report.pages.report import write_report
from sae_lens_crosscoder.synthetic import Concept, PlantedWorld
from tests.analysis.conftest import D_SAE, random_activations, random_crosscoder, relu_crosscoder
from tests.reference import basis_free as ref

NUS = ["nu_error_basis_free", "nu_reconstruction_basis_free"]
UNEVEN = (2, 4)


def sums_of(crosscoder, x, latents=None, batch=None):
    sums = ReconstructedDirections(crosscoder, torch.arange(crosscoder.cfg.d_sae) if latents is None else latents)
    for part in x.split(batch or len(x)):
        f = crosscoder.encode(part)
        sums.add(part, f, crosscoder.decode(f))
    return sums


@pytest.mark.parametrize("scales", [None, (0.5, 4.0)])
def test_lengths_and_noise_are_their_naive_definitions(scales):
    crosscoder, x = random_crosscoder(scales=scales, d_models=UNEVEN), random_activations()
    acts = crosscoder.encode(x).tolist()

    def cut(row):
        return [row[: UNEVEN[0]], row[UNEVEN[0] :]]

    decoders, b_dec = [cut(row) for row in crosscoder.W_dec.tolist()], cut(crosscoder.b_dec.tolist())
    sums = sums_of(crosscoder, x, batch=7)
    for m in range(2):
        c = 1.0 if scales is None else scales[m]
        for j in range(D_SAE):
            v, noise = ref.reconstructed_direction(j, m, acts, decoders, b_dec)
            assert sums.norms()[j, m].item() == pytest.approx(c * sum(x * x for x in v) ** 0.5)
            assert sums.noise()[j, m].item() == pytest.approx(c * noise)


def test_the_order_of_tokens_and_the_units_of_a_latent_do_not_matter():
    crosscoder, x = random_crosscoder(d_models=UNEVEN), random_activations()
    one, other = sums_of(crosscoder, x), sums_of(crosscoder, x.flip(0), batch=9)
    torch.testing.assert_close(one.norms(), other.norms())
    torch.testing.assert_close(one.noise(), other.noise())
    with torch.no_grad():
        crosscoder.W_enc[:, 0] *= 3
        crosscoder.b_enc[0] *= 3
        crosscoder.W_dec[0] /= 3
    rescaled = sums_of(crosscoder, x)
    torch.testing.assert_close(3 * rescaled.norms()[0], one.norms()[0])
    torch.testing.assert_close(rescaled.norms()[1:], one.norms()[1:])


def test_only_chosen_latents_count_and_one_that_never_varies_has_no_length():
    crosscoder, x = random_crosscoder(d_models=UNEVEN), random_activations()
    chosen = torch.tensor([4, 1])
    torch.testing.assert_close(sums_of(crosscoder, x, chosen).norms(), sums_of(crosscoder, x).norms()[chosen])
    assert sums_of(crosscoder, x, chosen[:0]).norms().shape == (0, 2)
    with torch.no_grad():
        crosscoder.W_enc[:, 2], crosscoder.b_enc[2] = 0, 5.0
    assert sums_of(crosscoder, x).norms()[2].isnan().all()


KINDS = [
    *[Concept("shared", 0.1)] * 3,
    *[Concept("chat_only", 0.1)] * 2,
    *[Concept("base_only", 0.1)] * 2,
    *[Concept("weak", 0.1, rho=0.5)] * 2,
    *[Concept("decoupled", 0.1, q=0.7)] * 2,
]
EXPECTED = [
    *["shared"] * 3,
    *["chat_specific"] * 2,
    *["base_specific"] * 2,
    *["complete_shrinkage"] * 2,
    *["latent_decoupling"] * 2,
    *["latent_decoupling"] * 2,
]


def artifact_crosscoder(d_models=(64, 48)):
    """A crosscoder with the artifacts of L1 training, on a world of unequal widths.

    Weak concepts have no base norm (Complete Shrinkage). Decoupled ones have a latent per model, which for the
    tokens that both have fire together (Latent Decoupling); the last two latents are those of the base model.
    """
    world = PlantedWorld(KINDS, d_models=d_models, seed=0, offset_norm=0.0)
    base, chat = (directions.double() for directions in world.directions)
    base_rows, chat_rows = torch.cat([base, base[9:]]), torch.cat([chat, 0 * chat[9:]])
    chat_rows[5:7] = 0
    for j in (3, 4, 7, 8, 9, 10):
        base_rows[j] = 0
    W_dec = torch.cat([base_rows, chat_rows], dim=-1)
    readers = torch.linalg.pinv(W_dec)
    return world, relu_crosscoder(W_dec, W_enc=readers, b_enc=torch.full((13,), -0.15), d_models=d_models)


@pytest.fixture(scope="module")
def diagnosis():
    world, crosscoder = artifact_crosscoder()
    x = world.sample(20_000, seed=1).activations.double()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return slc.diagnose(crosscoder, slc.EvalData(activations=x.split(4096)))


def test_planted_concepts_of_models_of_widths_64_and_48_get_the_right_verdicts(diagnosis):
    assert diagnosis.latents.verdict.tolist() == EXPECTED


def test_the_table_names_the_kind_and_keeps_it_apart_from_ordinary_nu(diagnosis):
    table = diagnosis.latents
    assert (table.nu_kind == "basis_free").all()
    assert diagnosis.manifest["nu_kind"] == "basis_free"
    for name in ("nu_error", "nu_reconstruction", "nu_error_base_probe", "nu_reconstruction_centred", "presence"):
        assert table[name].isna().all()
    judged = table.label.isin(["chat_only", "base_only"])
    assert table.loc[judged, NUS].notna().all(axis=None)
    assert table.loc[~judged, NUS].isna().all(axis=None)
    assert diagnosis.nu_columns == tuple(NUS)
    row = table.loc[7]
    expected = nu_free_of_other(row.free_norm_base, row.free_noise_base, row.free_norm_chat)
    assert row.nu_error_basis_free == pytest.approx(expected)
    assert row.nu_error_basis_free == pytest.approx(0.5, abs=0.15)


def test_models_of_equal_width_have_no_basis_free_columns():
    for d_models, suffixes in (((3, 3), [""]), ((2, 2, 2), ["_model_1", "_model_2"])):
        found = slc.diagnose(random_crosscoder(d_models=d_models), slc.EvalData(activations=[random_activations()]))
        for suffix in suffixes:
            assert (found.latents[f"nu_kind{suffix}"] == "along_decoder").all()
        tables = [found, *found.pairs.values()]
        assert not any(set(NUS) & set(table.latents) for table in tables)
        assert "basis-free" not in found.conclusion


def test_swapping_the_models_mirrors_the_verdicts():
    world, crosscoder = artifact_crosscoder()
    x = world.sample(8_000, seed=1).activations.double()

    def swapped(rows):
        return torch.cat([rows[..., 64:], rows[..., :64]], dim=-1)

    mirror = relu_crosscoder(
        swapped(crosscoder.W_dec.detach()),
        W_enc=swapped(crosscoder.W_enc.detach().T).T,
        b_enc=crosscoder.b_enc,
        d_models=(48, 64),
    )
    ours = slc.diagnose(crosscoder, slc.EvalData(activations=[x])).latents
    theirs = slc.diagnose(mirror, slc.EvalData(activations=[swapped(x)])).latents
    pd.testing.assert_frame_equal(ours[NUS], theirs[NUS])
    swap = {"chat_specific": "base_specific", "base_specific": "chat_specific"}
    assert [swap.get(verdict, verdict) for verdict in ours.verdict] == theirs.verdict.tolist()


def test_every_conclusion_page_and_fact_says_that_verdicts_are_basis_free(diagnosis, tmp_path):
    assert diagnosis.conclusion.endswith("verdicts are basis-free, because the models have different widths")
    shared = diagnosis.latents[diagnosis.latents.verdict == "shared"]
    fve = {"base": 0.9, "chat": 0.9}
    assert "basis-free" in conclusion(Evidence(shared, fve, 1000))
    assert "basis-free" in conclusion(Evidence(shared, {"base": 0.1, "chat": 0.9}, 1000))
    page = write_report({"uneven": diagnosis}, tmp_path / "report.html", pd.DataFrame({"uneven": ["x"]})).read_text()
    assert BASIS_FREE in page
    assert "nu_error_basis_free [low, high]" in page
    for figure in (nu_scatter({"uneven": diagnosis}), nu_marginals({"uneven": diagnosis}, "chat_only")):
        titles = [axis.title.text for axis in (*figure.select_xaxes(), *figure.select_yaxes())]
        assert {*NUS} <= {*titles}
        assert sum(len(trace.x) for trace in figure.select_traces(selector={"type": "scatter"})) == 6
    facts = facts_about(Exploration(diagnosis.latents)[3], diagnosis.latents)["Is it genuine"]
    assert [fact.title for fact in facts][:2] == NUS
    _, crosscoder = artifact_crosscoder()
    assert BASIS_FREE in model_card(crosscoder, "me/it", diagnosis=diagnosis)


def test_a_table_comes_back_as_it_was_saved_and_an_interrupted_diagnosis_resumes(diagnosis, tmp_path):
    diagnosis.save(tmp_path)
    loaded = slc.Diagnosis.load(tmp_path)
    pd.testing.assert_frame_equal(loaded.latents, diagnosis.latents)
    assert loaded.nu_columns == diagnosis.nu_columns
    world, crosscoder = artifact_crosscoder()
    parts = list(world.sample(20_000, seed=1).activations.double().split(4096))

    def interrupted():
        yield from parts[:3]
        raise KeyboardInterrupt

    from sae_lens_crosscoder.storage import accumulators

    path = tmp_path / "sums"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accumulators, "_SECONDS_BETWEEN_SAVES", 0.0)
        with pytest.raises(KeyboardInterrupt):
            slc.diagnose(crosscoder, slc.EvalData(activations=interrupted()), checkpoint_path=path)
        resumed = slc.diagnose(crosscoder, slc.EvalData(activations=iter(parts)), checkpoint_path=path)
    pd.testing.assert_frame_equal(resumed.latents, diagnosis.latents)


def test_q_of_exclusive_latents_uses_the_nu_that_judge_them(diagnosis):
    table = diagnosis.latents.assign(exclusive=diagnosis.latents.label != "shared")
    table.loc[0, "delta_norm"] = 0.55  # chance, without which there is no null
    null = table.assign(**dict.fromkeys(NUS, 0.1))
    q = q_values(table, [null])
    assert (q[3:7] < q[7:11].min()).all()
