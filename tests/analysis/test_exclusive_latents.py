"""Exclusive latents are one-sided by construction: tables, q-values, conclusions and pages must say so."""

import numpy as np
import pandas as pd
import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.analysis.diagnosis.conclusion import Evidence, conclusion
from sae_lens_crosscoder.analysis.diagnosis.null_runs import q_values
from sae_lens_crosscoder.crosscoders.partition import BY_CONSTRUCTION
from sae_lens_crosscoder.report.explorer.records import Exploration
from sae_lens_crosscoder.report.export.model_card import model_card
from sae_lens_crosscoder.report.figures.delta_norm_and_nu import delta_norm_histogram, nu_scatter
from sae_lens_crosscoder.report.notebook.facts import facts_about
from sae_lens_crosscoder.report.pages.report import write_report

N_BASE, N_CHAT, D_SAE = 2, 3, 8
FVE = {"base": 0.9, "chat": 0.9, "pooled": 0.9, "difference": 0.4}


@pytest.fixture(scope="module")
def crosscoder():
    cfg = slc.JumpReLUCrosscoderConfig(
        d_models=(3, 3), d_sae=D_SAE, dtype="float64", n_base_exclusive=N_BASE, n_chat_exclusive=N_CHAT
    )
    built = slc.JumpReLUCrosscoder(cfg)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        built.W_dec.copy_(torch.randn(D_SAE, 6, generator=generator, dtype=torch.float64))
        cfg.partition.clear(built.W_dec, cfg.layout)
        built.W_enc.copy_(built.W_dec.T)
    return built


@pytest.fixture(scope="module")
def diagnosis(crosscoder):
    x = torch.randn(400, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return slc.diagnose(crosscoder, slc.EvalData(activations=x.split(100)))


def test_the_table_and_the_manifest_name_the_exclusive_latents(diagnosis):
    table = diagnosis.latents
    assert table.exclusive.tolist() == [j < N_BASE + N_CHAT for j in range(D_SAE)]
    assert table.delta_norm[table.exclusive].tolist() == [0, 0, 1, 1, 1]
    assert diagnosis.manifest["partition"] == {"n_base": N_BASE, "n_chat": N_CHAT}


def test_a_crosscoder_without_a_partition_has_no_such_column(diagnosis):
    cfg = slc.JumpReLUCrosscoderConfig(d_models=(3, 3), d_sae=D_SAE, dtype="float64")
    plain = slc.JumpReLUCrosscoder(cfg)
    with torch.no_grad():
        plain.W_enc.normal_(generator=torch.Generator().manual_seed(3))
    x = torch.randn(200, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = slc.diagnose(plain, slc.EvalData(activations=[x]))
    assert "exclusive" not in found.latents
    assert "by construction" not in found.conclusion
    with pytest.raises(ValueError, match="The null run has the partition"):
        slc.diagnose(plain, slc.EvalData(activations=[x]), null=diagnosis)


def test_every_conclusion_says_what_is_by_construction(diagnosis):
    assert "Delta_norm of 5 exclusive latents is 0 or 1 by construction" in diagnosis.conclusion
    table = pd.DataFrame({"delta_norm": [1.0, 0.45, 0.55], "n_active": 500, "q_value": np.nan})
    table = table.assign(label=["chat_only", "shared", "shared"], exclusive=[True, False, False])
    for verdict, start in (("chat_specific", "1 latent is specific"), ("latent_decoupling", "no difference detected")):
        found = conclusion(Evidence(table.assign(verdict=[verdict, "shared", "shared"]), FVE, 1000))
        assert found.startswith(start)
        n_specific = int(verdict == "chat_specific")
        assert found.endswith(f"so only their verdict is evidence ({n_specific} specific)")


def test_exclusive_latents_do_not_make_an_untrained_crosscoder_look_trained():
    table = pd.DataFrame({"delta_norm": [1.0, 0.5, 0.5], "n_active": 500, "q_value": np.nan})
    table = table.assign(label=["chat_only", "shared", "shared"], exclusive=[True, False, False])
    table["verdict"] = ["latent_decoupling", "shared", "shared"]
    assert conclusion(Evidence(table, FVE, 1000)).startswith("undecided: Delta_norm never left its start")


def exclusive_table(nu_error, nu_reconstruction, n_active=1000):
    """Chat-exclusive latents with these nu, and shared ones of no interest."""
    n = len(nu_error)
    table = pd.DataFrame({"delta_norm": [1.0] * n + [0.52, 0.48], "label": ["chat_only"] * n + ["shared"] * 2})
    table["n_active"], table["exclusive"] = n_active, [True] * n + [False] * 2
    for name, values in (("nu_error", nu_error), ("nu_reconstruction", nu_reconstruction)):
        table[name] = [*values, 1.0, 1.0]
        table[f"{name}_base_probe"] = np.nan
    return table


def test_q_of_an_exclusive_latent_compares_its_nu_with_exclusive_latents_of_the_null():
    real = exclusive_table([0.0] * 20 + [0.9] * 10, [0.1] * 30)
    null = exclusive_table(np.linspace(0.5, 1.5, 30), [0.9] * 30)
    q = q_values(real, [null])
    assert (q[:20] < 0.1).all()
    assert (q[20:30] > 0.3).all()


def test_a_null_whose_exclusive_latents_pass_as_well_leaves_nothing():
    real = exclusive_table([0.0] * 20, [0.1] * 20)
    assert (q_values(real, [real])[:20] == 1).all()


def test_q_of_learned_latents_is_what_it_is_without_exclusive_ones():
    generator = np.random.default_rng(0)
    real, null = (
        pd.DataFrame({"delta_norm": generator.uniform(size=50), "n_active": 1000, "exclusive": False}) for _ in range(2)
    )
    both = [
        pd.concat([exclusive_table([0.0] * 9, [0.0] * 9).head(9), table], ignore_index=True) for table in (real, null)
    ]
    assert q_values(both[0], [both[1]])[9:] == pytest.approx(q_values(real, [null]))


def test_pages_figures_and_facts_say_by_construction(crosscoder, diagnosis, tmp_path):
    named = {"partitioned": diagnosis}
    texts = [
        " ".join(str(annotation.text) for annotation in figure.layout.annotations)
        for figure in (delta_norm_histogram(named), nu_scatter(named))
    ]
    assert all("one-sided by construction: 5" in text for text in texts)
    page = write_report(named, tmp_path / "report.html", pd.DataFrame({"partitioned": ["x"]})).read_text()
    assert BY_CONSTRUCTION in page
    assert "chat_only, by construction" in page
    exploration = Exploration(diagnosis.latents)
    titles = {
        j: [fact.title for fact in facts_about(exploration[j], diagnosis.latents)["Where it writes"]] for j in (0, 7)
    }
    assert "Delta_norm, by construction" in titles[0]
    assert "Delta_norm" in titles[7]
    card = model_card(crosscoder, "me/it", diagnosis=diagnosis)
    assert BY_CONSTRUCTION in card
