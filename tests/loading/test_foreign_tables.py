"""Tables of the paper's authors come with our columns, and in our direction."""

import pandas as pd
import pytest

import sae_lens_crosscoder as slc
from tests.reference.foreign_layouts import dec_norm_diff

NORMS = {3: (2.0, 0.1), 7: (0.0, 1.5), 8: (1.0, 1.0), 21: (1.0, 0.6)}


def theirs(chat_norm, tags, **columns):
    table = {
        "tag": tags,
        "dec_base_norm": [base for base, _ in NORMS.values()],
        chat_norm: [chat for _, chat in NORMS.values()],
        "dec_norm_diff": [dec_norm_diff(base, chat) for base, chat in NORMS.values()],
        "dec_cos_sim": [0.1, 0.2, 0.3, 0.4],
        "beta_ratio_error": [1.0, -0.1, 2.0, None],
        "beta_ratio_reconstruction": [0.1, 0.2, 0.3, None],
        "beta_error_base": [0.5, 0.6, 0.7, 0.8],
    }
    return pd.DataFrame(table | columns, index=list(NORMS))


PAPER = theirs(
    "dec_instruct_norm",
    ["Base only", "Chat only", "Shared", "Other"],
    beta_error_chat=[1.0, 2.0, 3.0, 4.0],
    rank_sum=[5, 6, 7, 8],
    freq=[0.1, 0.2, 0.3, 0.0],
    freq_val=[9.0, 9.0, 9.0, 9.0],
    max_act_val=[3.0, 4.0, 5.0, 0.0],
    lmsys_dead=[False, False, False, True],
    **{"lmsys_ctrl_%": [0.0, 0.5, 1.0, None]},
)
TOOLKIT = theirs(
    "dec_ft_norm",
    ["base_only", "ft_only", "shared", "other"],
    beta_error_ft=[1.0, 2.0, 3.0, 4.0],
    max_act_validation=[3.0, 4.0, 5.0, 0.0],
)


@pytest.mark.parametrize("table", [PAPER, TOOLKIT], ids=["paper", "toolkit"])
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_columns_are_ours(tmp_path, table, suffix):
    path = tmp_path / f"feature_df{suffix}"
    table.to_csv(path) if suffix == ".csv" else table.to_parquet(path)
    ours = slc.convert.load_latent_table(path)
    assert ours.index.name == "latent"
    assert list(ours.index) == list(NORMS)
    assert ours.delta_norm.tolist() == pytest.approx([0.025, 1.0, 0.5, 0.3])  # (chat - base) / max, moved to [0, 1]
    assert ours.label.tolist() == ["base_only", "chat_only", "shared", "other"]
    assert ours.dec_norm_chat.tolist() == [0.1, 1.5, 1.0, 0.6]
    assert ours.cos_sim.tolist() == [0.1, 0.2, 0.3, 0.4]
    assert ours.nu_error.tolist()[:3] == [1.0, -0.1, 2.0]
    assert ours.nu_reconstruction.isna().tolist() == [False, False, False, True]
    assert (ours.beta_error_base[3], ours.beta_error_chat[21]) == (0.5, 4.0)
    assert ours.max_activation.tolist() == [3.0, 4.0, 5.0, 0.0]
    assert not {"dec_norm_diff", "tag", "dec_ft_norm", "beta_error_ft", "beta_ratio_error"} & set(ours)


def test_what_only_the_paper_has(tmp_path):
    PAPER.to_csv(tmp_path / "feature_df.csv")
    ours = slc.convert.load_latent_table(tmp_path / "feature_df.csv")
    assert ours.frequency.tolist() == [0.1, 0.2, 0.3, 0.0]
    assert ours.freq_val.tolist() == [9.0] * 4
    assert ours.dead.tolist() == [False, False, False, True]
    assert ours.frac_template.tolist()[:3] == [0.0, 0.5, 1.0]
    assert ours.rank_sum.tolist() == [5, 6, 7, 8]


def test_older_tags_and_missing_ones(tmp_path):
    PAPER.assign(tag=["Base only", "IT only", None, "Other"]).to_csv(tmp_path / "t.csv")
    assert slc.convert.load_latent_table(tmp_path / "t.csv").label.tolist() == [
        "base_only",
        "chat_only",
        "undefined",
        "other",
    ]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (PAPER.drop(columns="dec_norm_diff"), "no column dec_norm_diff"),
        (PAPER.assign(tag="Chat mostly"), "unknown tag 'Chat mostly', expected one of base only"),
        (PAPER.assign(dec_norm_diff=1 - PAPER.dec_norm_diff), "direction may be reversed"),
        (PAPER.set_index("tag"), "must contain latent ids, each once"),
        (pd.concat([PAPER, PAPER]), "must contain latent ids, each once"),
        (PAPER.assign(dec_norm_diff="x"), "dec_norm_diff must contain numbers between 0 and 1"),
        (PAPER.assign(dec_base_norm="x"), r"decoder norms \(dec_base_norm\) must be numbers"),
    ],
)
def test_another_table_is_refused(tmp_path, table, message):
    table.to_csv(tmp_path / "t.csv")
    with pytest.raises(ValueError, match=message):
        slc.convert.load_latent_table(tmp_path / "t.csv")
