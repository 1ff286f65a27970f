"""Laws of the export for Neuronpedia: its import reads every line, and every number is the exploration's."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.models.tiny.vocabulary import TOKEN_IDS
from tests.interpretation.conftest import HOOK, one_hot_pair, planted_crosscoder, random_texts
from tests.report.explorations import make_exploration
from tests.report.neuronpedia_schema import COLUMNS, DEMANDED, is_a

N, PER_FILE = 40, 16
WORDS = {
    2: ' "quoted\\',
    3: " nul\0",
    4: "\n",
    5: r" \u0000",
    6: "\ud83d",
    7: "\u2028</script>",
    8: " \U0001f680",
    9: r"\\",
}
STORED = {**WORDS, 1: " plain", 3: " nul\ufffd", 6: "?"}


def imported(file):
    """The rows that Neuronpedia's import makes of a file: it knows the columns by the first line."""
    text = (gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()).decode("utf-8")
    lines = text.replace("\\u0000", " ").strip().split("\n")
    rows = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    return [{name: row.get(name) for name in rows[0]} for row in rows]


def table(folder, name):
    files = sorted(folder.glob(f"{name}/batch-*.jsonl.gz"), key=lambda file: int(file.name.split(".")[0][6:]))
    return [row for file in files for row in imported(file)]


@pytest.fixture(scope="module")
def exploration(tmp_path_factory):
    """Some latents are dead, and some were interpreted."""
    found = make_exploration(tmp_path_factory.mktemp("examples"), N, words=WORDS, n_per_quantile=3)
    assert 1 < found.table.dead.sum() < 9
    found.profiles.histogram[torch.tensor(found.table.dead.tolist())] = 0
    explanation = [f'about {latent} \\ "' if latent % 10 == 5 else None for latent in range(N)]
    return replace(found, table=found.table.assign(explanation=explanation, interpreter="somebody/explains"))


@pytest.fixture(scope="module")
def folder(exploration, tmp_path_factory):
    return slc.report.write_neuronpedia(
        exploration, tmp_path_factory.mktemp("exports"), "cc-2", latents_per_file=PER_FILE
    )


def test_every_line_is_a_row_that_the_database_takes(folder):
    assert folder.parts[-2:] == ("up-2b-it", "13-cc-2")
    names = {str(file.relative_to(folder)).split("/")[0].removesuffix(".jsonl") for file in folder.rglob("*.jsonl*")}
    assert names == set(COLUMNS)
    ids = []
    for file in folder.rglob("*.jsonl*"):
        name = str(file.relative_to(folder)).split("/")[0].removesuffix(".jsonl")
        for row in imported(file):
            assert DEMANDED[name] <= set(row) <= set(COLUMNS[name])
            assert [key for key, value in row.items() if not is_a(value, COLUMNS[name][key])] == []
            if name in ("features", "activations", "explanations"):
                assert (row["modelId"], row["layer"]) == ("up-2b-it", "13-cc-2")
            ids += [row["id"]] if name in ("activations", "explanations") else []
    assert len(ids) == len(set(ids)) > 100


def test_the_source_says_what_it_is_of(folder):
    (release,), (model,), (source_set,), (source,) = (
        imported(folder / f"{name}.jsonl") for name in ("release", "model", "sourceset", "source")
    )
    assert (release["name"], release["description"]) == ("cc-2", "Crosscoder of Up-2b and Up-2b-it")
    assert (model["id"], model["displayName"], model["instruct"], model["dimension"]) == (
        "up-2b-it",
        "Up-2b-it",
        True,
        4,
    )
    assert (source_set["modelId"], source_set["name"], source_set["releaseName"]) == ("up-2b-it", "cc-2", "cc-2")
    assert (source["id"], source["modelId"], source["setName"]) == ("13-cc-2", "up-2b-it", "cc-2")
    assert (source["num_prompts"], source["num_tokens_in_prompt"], source["dataset"]) == (128, 64, "a/b")


def test_batches_hold_every_latent_once(folder):
    assert [row["index"] for row in table(folder, "features")] == [str(latent) for latent in range(N)]
    sizes = [len(imported(folder / "features" / f"batch-{n}.jsonl.gz")) for n in range(3)]
    assert sizes == [16, 16, 8]
    for file in folder.rglob("*.jsonl.gz"):
        first = PER_FILE * int(file.name.split(".")[0][6:])
        assert {int(row["index"]) for row in imported(file)} <= set(range(first, first + PER_FILE))


def test_no_file_is_empty(exploration, tmp_path):
    folder = slc.report.write_neuronpedia(exploration, tmp_path, "cc-2", latents_per_file=1)
    live = (~exploration.table.dead.to_numpy()).nonzero()[0]
    assert {file.name for file in folder.glob("activations/*")} == {f"batch-{latent}.jsonl.gz" for latent in live}
    assert {file.name for file in folder.glob("explanations/*")} == {f"batch-{j}.jsonl.gz" for j in (5, 15, 25, 35)}


def test_features_are_the_tables_and_the_lenses(folder, exploration):
    lens, highest = exploration.lenses["chat"], exploration.table.max_activation
    for latent, row in enumerate(table(folder, "features")):
        counts = exploration.profiles.histogram[latent].tolist()
        assert row["frac_nonzero"] == pytest.approx(sum(counts) / (128 * 64), rel=5e-4)
        assert row["freq_hist_data_bar_heights"] == (counts if sum(counts) else [])
        centres = [highest[latent] * (2 * i + 1) / 48 for i in range(24)] if sum(counts) else []
        assert row["freq_hist_data_bar_values"] == pytest.approx(centres, rel=5e-4)
        for side, ids, by in (("pos", lens.raised, lens.raised_by), ("neg", lens.lowered, lens.lowered_by)):
            assert row[f"{side}_str"] == [STORED.get(i, f" w{i}") for i in ids[latent].tolist()]
            assert row[f"{side}_values"] == pytest.approx(by[latent].tolist(), rel=5e-4)
        top = exploration.examples[latent].top
        assert row["maxActApprox"] == pytest.approx(top[0].score if top else 0, rel=5e-4)


def test_contexts_are_the_examples_each_in_its_interval(folder, exploration):
    rows = table(folder, "activations")
    seen = 0
    for latent in range(N):
        found = exploration.examples[latent]
        own = [row for row in rows if row["index"] == str(latent)]
        sample = [each for band in found.quantiles for each in band][::-1]
        assert len(own) == len(found.top) + len(sample)
        highest = exploration.table.max_activation[latent]
        counts = exploration.profiles.histogram[latent].tolist()
        for rank, (row, example) in enumerate(zip(own, [*found.top, *sample], strict=True)):
            scores = example.scores.tolist()
            assert row["tokens"] == [STORED.get(i, f" w{i}") for i in example.token_ids.tolist()]
            assert row["values"] == pytest.approx(scores, rel=5e-4)
            assert row["maxValue"] == pytest.approx(max(scores), rel=5e-4)
            assert row["minValue"] == pytest.approx(min(scores), rel=5e-4)
            assert row["values"][row["maxValueTokenIndex"]] == row["maxValue"]
            assert row["qualifyingTokenIndex"] == row["maxValueTokenIndex"] == example.peak
            interval = [row["binMin"], row["binMax"], row["binContains"]]
            if rank < len(found.top):
                assert interval == pytest.approx([-1, highest, -1], rel=5e-4)
            else:
                sixth = min(int(6 * example.score / highest), 5)
                inside = sum(counts[4 * sixth : 4 * sixth + 4]) / (128 * 64)
                expected = [highest * sixth / 6, highest * (sixth + 1) / 6, inside]
                assert interval == pytest.approx(expected, rel=5e-4)
            seen += 1
    assert seen == len(rows) > 200


def test_explanations_are_the_interpreted_latents(folder):
    rows = table(folder, "explanations")
    assert {row["index"]: row["description"] for row in rows} == {str(j): f'about {j} \\ "' for j in (5, 15, 25, 35)}
    assert {row["notes"] for row in rows} == {"by somebody/explains"}


def test_the_base_model_has_its_own_name_and_logits(exploration, tmp_path):
    chat = exploration.lenses["chat"]
    lenses = {"base": replace(chat, raised_by=chat.raised_by + 1), "chat": chat}
    folder = slc.report.write_neuronpedia(
        replace(exploration, lenses=lenses), tmp_path, "cc-2", model="base", model_id="gpt2"
    )
    assert folder == tmp_path / "gpt2" / "13-cc-2"
    (model,) = imported(folder / "model.jsonl")
    assert (model["id"], model["displayName"], model["instruct"]) == ("gpt2", "Up-2b", False)
    row = table(folder, "features")[3]
    assert row["pos_values"] == pytest.approx((chat.raised_by[3] + 1).tolist(), rel=5e-4)


def test_the_same_exploration_gives_the_same_bytes(exploration, folder, tmp_path):
    again = slc.report.write_neuronpedia(exploration, tmp_path, "cc-2", latents_per_file=PER_FILE)
    files = {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    assert files == {file.relative_to(again): file.read_bytes() for file in again.rglob("*") if file.is_file()}
    other = slc.report.write_neuronpedia(exploration, tmp_path, "cc-3")
    assert {row["id"] for row in table(folder, "activations")}.isdisjoint(
        row["id"] for row in table(other, "activations")
    )


def test_what_explore_finds_is_what_the_crosscoder_does(tmp_path):
    """Every score of a real pair, whose embedding is one-hot, counted anew."""
    pair, crosscoder, tokens = one_hot_pair(), planted_crosscoder(), random_texts(12)
    pair.model_names = ("/home/me/Base", "/home/me/Chat")
    named(crosscoder, *pair.model_names)
    folder = slc.report.write_neuronpedia(
        slc.explore(crosscoder, slc.EvalData(pair=pair, tokens=tokens)), tmp_path, "one-hot"
    )
    assert folder == tmp_path / "chat" / "0-one-hot"
    assert not any("/home/me" in Path(file).read_text() for file in folder.glob("*.jsonl"))
    scores = crosscoder.encode(pair.activations(tokens, HOOK)).detach()
    attribution = slc.causal.logit_attribution(pair.chat, crosscoder.decoders[1].detach())
    contexts = table(folder, "activations")
    for latent, row in enumerate(table(folder, "features")):
        own = scores[..., latent]
        assert row["frac_nonzero"] == pytest.approx(float((own > 0).double().mean()), rel=5e-4)
        assert row["maxActApprox"] == pytest.approx(float(own.max()), rel=5e-4)
        assert sum(row["freq_hist_data_bar_heights"]) == int((own > 0).sum())
        assert row["neg_values"] == pytest.approx(attribution[latent].sort().values[:8].tolist(), rel=5e-4)
        shown = [each for each in contexts if each["index"] == str(latent)]
        assert len({json.dumps(each["tokens"]) for each in shown}) == int((own > 0).any(dim=1).sum())
        bins = (own.double() / own.double().max() * 24).floor().clamp(max=23)
        for each in shown:
            peak = torch.tensor(each["values"]).argmax()
            place = (tokens.unfold(1, len(each["tokens"]), 1) == ids_of(each["tokens"])).all(dim=-1).nonzero()[0]
            at = int(bins[place[0], place[1] + peak])
            if each["binMin"] != -1:
                share = float(((bins // 4 == at // 4) & (own > 0)).double().mean())
                assert each["binContains"] == pytest.approx(share, rel=5e-4)


def named(crosscoder, base="Base", chat="Chat"):
    crosscoder.cfg.metadata.model_name, crosscoder.cfg.metadata.chat_model_name = base, chat
    return crosscoder


def test_models_without_names_are_refused(tmp_path):
    found = slc.explore(planted_crosscoder(), slc.EvalData(pair=one_hot_pair(), tokens=random_texts(2)))
    with pytest.raises(ValueError, match="metadata names no models"):
        slc.report.write_neuronpedia(found, tmp_path, "cc")
    assert list(tmp_path.iterdir()) == []


def test_a_token_that_does_not_count_is_shown_as_off(tmp_path):
    crosscoder, tokens = named(planted_crosscoder()), random_texts(12)
    keep = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(0)) < 0.7
    found = slc.explore(crosscoder, slc.EvalData(pair=one_hot_pair(), tokens=tokens, token_mask=keep))
    folder = slc.report.write_neuronpedia(found, tmp_path, "cc")
    (source,), rows = imported(folder / "source.jsonl"), table(folder, "activations")
    assert source["dataset"] == ""  # as the crosscoder does not say
    strongest = [each for latent in range(len(found)) for each in found.examples[latent].top]
    shown = [row for row in rows if row["binContains"] == -1]
    assert any(each.scores.isnan().any() for each in strongest)
    for row, example in zip(shown, strongest, strict=True):
        counts = keep[example.prompt, example.position - example.peak :][: len(example.scores)].tolist()
        expected = [score if kept else 0 for score, kept in zip(example.scores.tolist(), counts, strict=True)]
        assert row["values"] == pytest.approx(expected, rel=5e-4)
        assert row["minValue"] == pytest.approx(min(expected), rel=5e-4)


def ids_of(texts):
    return torch.tensor([TOKEN_IDS[text.strip()] for text in texts])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source_set": "My Set"}, "source_set='My Set' cannot be part of an address: pass 'my-set'"),
        ({"source_set": "a__b"}, "pass 'a-b'"),
        ({"source_set": ".."}, "source_set='..' cannot be part of an address: pass 'crosscoder'"),
        ({"model_id": "../x"}, "model_id='../x' cannot be part of an address: pass 'x'"),
        ({"model": "it"}, "model='it' is not a model of the crosscoder: expected one of base, chat"),
        ({"latents_per_file": 0}, "latents_per_file=0 gives more than 1,000 files .* pass 256"),
    ],
)
def test_names_and_sizes_that_neuronpedia_cannot_take_are_refused(exploration, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        slc.report.write_neuronpedia(exploration, tmp_path, **{"source_set": "cc-2", **options})
    assert list(tmp_path.iterdir()) == []


def test_more_files_than_neuronpedia_lists_are_refused(exploration, tmp_path, monkeypatch):
    monkeypatch.setattr("sae_lens_crosscoder.report.export.neuronpedia._MAX_FILES", 3)
    with pytest.raises(ValueError, match="for 40 latents, and Neuronpedia reads no more: pass 256"):
        slc.report.write_neuronpedia(exploration, tmp_path, "cc-2", latents_per_file=13)
    folder = slc.report.write_neuronpedia(exploration, tmp_path, "cc-2", latents_per_file=14)
    assert len(list(folder.glob("features/*"))) == 3


def test_what_is_missing_or_there_already_is_refused(exploration, folder, tmp_path):
    with pytest.raises(ValueError, match=r"pass the full result of slc\.explore"):
        slc.report.write_neuronpedia(replace(exploration, profiles=None), tmp_path, "cc-2")
    with pytest.raises(ValueError, match="13-cc-2 exists already"):
        slc.report.write_neuronpedia(exploration, folder.parents[1], "cc-2")
    nowhere = replace(exploration)
    nowhere.examples.manifest["hook_name"] = "hook_embed"
    try:
        with pytest.raises(ValueError, match="The hook 'hook_embed' names no layer"):
            slc.report.write_neuronpedia(nowhere, tmp_path, "cc-2")
    finally:
        nowhere.examples.manifest["hook_name"] = "blocks.13.hook_resid_post"
