"""audit: the answer on one page, resumed, interrupted, refused, and silent where nothing changed."""

import base64
import gzip
import json
import re
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.analysis.answers.behaviour import Behaviour
from sae_lens_crosscoder.analysis.answers.phrases import PhraseChange
from sae_lens_crosscoder.analysis.audit import finding
from sae_lens_crosscoder.data.chat_tokens import chat_tokens
from sae_lens_crosscoder.data.prompts import request_of
from sae_lens_crosscoder.models.tiny import dialogues
from sae_lens_crosscoder.report.explorer.page import write_explorer
from sae_lens_crosscoder.serving import ServeConfig
from sae_lens_crosscoder.serving.serve import prepare
from sae_lens_crosscoder.workflows.auditing import audit as auditing
from sae_lens_crosscoder.workflows.auditing import crosscoders, evidence, rows
from sae_lens_crosscoder.workflows.auditing.config import AuditConfig, seconds_of, with_own_control
from sae_lens_crosscoder.workflows.auditing.explorer import explore_answers
from sae_lens_crosscoder.workflows.auditing.models import AuditModels
from sae_lens_crosscoder.workflows.auditing.prompts import audit_prompts
from tests.causal.conftest import random_crosscoder

pytestmark = pytest.mark.usefixtures("types_unchecked_in_the_module")


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Short training, and effects on few prompts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "_STEPS", 60)
        patch.setattr(evidence, "N_CAUSAL", 4)
        patch.setattr(auditing, "explore_answers", lambda _, __, ___, concepts, **____: concepts)
        patch.setattr(auditing, "write_explorer", lambda concepts, path: path.write_text(f"{len(concepts)} concepts"))
        yield


def config(folder: Path, chat: str = "tiny-chat", **settings) -> AuditConfig:
    small = {"n_prompts": 200, "max_new_tokens": 8, "n_seeds": 1, "budget": "10m"} | settings
    return AuditConfig("tiny-base", chat, output_path=str(folder), **small)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audit")
    return folder, slc.audit(controlled(folder))


def controlled(folder: Path, **settings) -> AuditConfig:
    return config(folder, control="tiny-control", **settings)


def numbers(text: str) -> set[str]:
    return set(re.findall(r"\d+(?:\.\d+)?", text.replace(",", "").replace("\N{MINUS SIGN}", "-")))


class TestAudit:
    def test_what_the_chat_model_lost_is_found_with_its_evidence(self, done):
        _, result = done
        everything = [*result.findings, *result.answers_only]
        lost = next(finding for finding in everything if finding.behaviour.text.startswith("nice"))
        assert lost.behaviour.writer == "chat"  # which says this where base insults
        assert lost.behaviour.is_new
        assert "say that" in lost.markers.words
        assert lost.evidence[0].effect is not None
        assert all("say that" in example.prompt for example in lost.examples)

    def test_its_crosscoders_can_be_served(self, done):
        folder, _ = done
        models, page = prepare(ServeConfig(str(folder), n_held_out_rows=4))
        served = models.description()["crosscoders"]
        seeds = [path.name for path in sorted(folder.glob("crosscoder_*"))]
        assert [each["name"] for each in served] == seeds
        assert all(each["can_steer"] and each["name"] in page for each in served)

    def test_every_number_on_the_page_is_in_the_file(self, done):
        folder, _ = done
        page = (folder / auditing.PAGE_FILENAME).read_text()
        body = unescape(re.sub(r"<[^>]*>", " ", page[page.index("<body>") :]))
        stored = json.loads((folder / "audit.json").read_text())
        known = numbers(json.dumps(stored, ensure_ascii=False))
        rounded = {f"{abs(float(value)):.{digits}f}" for value in known for digits in (2, 3)}
        ours = {"0.05", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "95"}  # numbering, and the rules in words
        assert numbers(body) <= known | rounded | ours
        assert stored["findings"] == [finding.to_dict() for finding in done[1].findings]
        assert set(stored) >= {"findings", "not_found", "limits"}

    def test_a_repeated_call_reads_everything_from_the_folder(self, done, monkeypatch):
        folder, result = done

        def refuse(*args, **kwargs):
            raise AssertionError("this was done before")

        monkeypatch.setattr(auditing, "first_look", refuse)
        monkeypatch.setattr("sae_lens_crosscoder.data.answer_files.generate", refuse)
        monkeypatch.setattr("sae_lens_crosscoder.workflows.auditing.evidence.causal_ladder", refuse)
        monkeypatch.setattr(crosscoders, "audit_recipe", refuse)
        monkeypatch.setattr(auditing, "explore_answers", refuse)
        again = slc.audit(controlled(folder))
        assert [f.to_dict() for f in again.findings] == [f.to_dict() for f in result.findings]
        assert [f.to_dict() for f in again.answers_only] == [f.to_dict() for f in result.answers_only]

    def test_an_interrupted_audit_writes_what_it_has(self, done, monkeypatch):
        folder, result = done

        def interrupt(self):
            raise KeyboardInterrupt

        monkeypatch.setattr(crosscoders.AuditCrosscoders, "least_sizes", interrupt)
        stopped = slc.audit(controlled(folder))
        assert stopped.manifest["interrupted"]
        assert "interrupted" in (folder / auditing.PAGE_FILENAME).read_text()
        assert stopped.findings == result.findings
        assert stopped.limits.least_sizes is None

    def test_a_folder_with_another_audit_is_refused(self, done):
        with pytest.raises(ValueError, match="has an audit with other settings: seed"):
            slc.audit(controlled(done[0], seed=1))

    def test_the_base_model_trained_longer_claims_nothing(self, tmp_path):
        result = slc.audit(config(tmp_path, chat="tiny-null"))
        assert result.findings == result.answers_only == ()
        assert result.conclusion.startswith("No change of behaviour found")
        assert any("no hook brings back" in sentence for sentence in result.not_found)


class TestLabels:
    def test_a_client_s_labels_and_the_explorer_stand_beside_the_evidence(self, done, monkeypatch):
        folder, result = done
        monkeypatch.setattr(auditing, "MOST_FINDINGS", 1)
        monkeypatch.setattr(
            "sae_lens_crosscoder.analysis.audit.finding.Finding.is_claimed",
            property(lambda finding: finding.evidence != ()),
        )
        client = slc.interpretation.CallableClient(lambda prompt: "EXPLANATION: <b>gossip</b> about people", "by hand")
        (labelled,) = slc.audit(controlled(folder), client=client).findings
        assert [label.latent for label in labelled.labels] == list(labelled.latents[:3])
        assert {label.text for label in labelled.labels} == {"<b>gossip</b> about people"}
        assert labelled.sentence in [f.sentence for f in (*result.findings, *result.answers_only)]
        page = (folder / auditing.PAGE_FILENAME).read_text()
        assert "Labels by a language model, which are no evidence" in page
        assert "&lt;b&gt;gossip&lt;/b&gt; about people" in page
        assert "by hand" in page
        assert (folder / "explorer.html").read_text() == "1 concepts"
        assert all(f'href="explorer.html#latent={latent}"' in page for latent in labelled.latents)

    def test_a_failing_client_leaves_the_page_and_the_explorer_needs_time(self, done, monkeypatch, capsys):
        folder, _ = done
        monkeypatch.setattr(
            "sae_lens_crosscoder.analysis.audit.finding.Finding.is_claimed",
            property(lambda finding: finding.evidence != ()),
        )
        monkeypatch.setattr(auditing, "N_PASSES", 1e9)
        (folder / auditing.PAGE_FILENAME).unlink()
        (folder / "explorer.html").unlink(missing_ok=True)

        def refuse(prompt):
            raise ConnectionError("no endpoint")

        with pytest.raises(ConnectionError):
            slc.audit(controlled(folder), client=slc.interpretation.CallableClient(refuse, "down"))
        assert "Findings" in (folder / auditing.PAGE_FILENAME).read_text()
        assert not (folder / "explorer.html").exists()
        assert "No time is left for the explorer." in capsys.readouterr().out


def test_where_half_of_the_crosscoders_disagree_one_more_decides(tmp_path, monkeypatch):
    read, asked = evidence.EvidenceReader.read, {}

    def read_differently(self, crosscoder, seed, behaviours):
        """As it is, but that the second crosscoder does not agree on the first change."""
        asked[seed] = [behaviour.text for behaviour in behaviours]
        found = read(self, crosscoder, 0, behaviours)  # the same effects, read again
        return [replace(found[0], effect=None), *found[1:]] if seed == 1 else found

    monkeypatch.setattr(evidence.EvidenceReader, "read", read_differently)
    monkeypatch.setattr(finding.Evidence, "is_traced", property(lambda self: self.effect is not None))
    result = slc.audit(config(tmp_path, n_seeds=2))
    assert asked[1] == asked[0]
    assert len(asked[0]) > 1
    assert asked[2] == asked[0][:1]
    tied = next(each for each in result.findings if each.behaviour.text == asked[0][0])
    assert (tied.n_traced, len(tied.evidence)) == (2, 3)
    assert all(len(each.evidence) == 2 for each in result.findings if each is not tied)


class TestEverywhere:
    def test_a_change_on_all_prompts_is_traced_against_the_middle_of_the_prompts(self, tmp_path, monkeypatch):
        monkeypatch.setattr(rows, "_STEPS", 300)
        harmful = (m for m in dialogues(5000, 3, "held_out") if m[1]["content"].startswith("sorry"))
        requests = list(dict.fromkeys(messages[0]["content"] for messages in harmful))[:160]
        Path(tmp_path, "requests.txt").write_text("\n".join(requests))
        result = slc.audit(config(tmp_path / "audit", data=str(tmp_path / "requests.txt"), control="none"))
        (refusal,) = [*result.findings, *result.answers_only]
        assert refusal.behaviour.text == "sorry i cannot help with that."
        (evidence,) = refusal.evidence
        assert evidence.is_everywhere
        assert evidence.carriers.tells_apart
        assert refusal.is_claimed
        assert "Nearly all prompts show it." in refusal.sentence

    def test_the_middle_is_that_of_the_prompts_own_words(self):
        pair = slc.HookedModelPair.from_pretrained("tiny-base", "tiny-chat")
        prompts = audit_prompts(AuditConfig("tiny-base", "tiny-chat", n_prompts=200), pair).first(20)
        change = PhraseChange(("no",), "chat", tuple(range(16)), 8, 0, 10, 0.0, 0.0)
        contrast = rows.contrast_with_earlier(Behaviour((change,)), prompts, n=5)
        chosen = [0, 4, 8, 10, 14, 1, 5, 9, 11, 15]  # five of each part
        assert contrast.held_out.tolist() == ([False] * 5 + [True] * 5) * 2
        for row, i in enumerate(chosen):
            words = (prompts.chats[i].message >= 0).nonzero()[:, 0].tolist()
            whole, earlier = prompts.chats[i].input_ids, contrast.tokens[10 + row]
            middle = words[len(words) // 2]
            assert contrast.positions[[row, 10 + row]].tolist() == [len(whole) - 1, middle]
            assert torch.equal(earlier[: middle + 1], whole[: middle + 1])


class TestControl:
    def test_what_both_learnt_is_the_control_s_and_the_rest_is_not(self, done):
        _, result = done
        both = [finding.behaviour.text for finding in result.in_control]
        assert any(text.startswith("yes") for text in both)  # both agree with true statements
        own = [*result.findings, *result.answers_only]
        assert any(finding.behaviour.text.startswith("nice") for finding in own)  # the control insults as base does
        assert all(finding.control.n_control < finding.control.n_chat / 2 for finding in own)
        assert not any(finding.evidence for finding in result.in_control)  # nothing is traced in vain

    def test_the_built_in_pair_brings_its_own_unless_it_is_to_have_none(self):
        own = {
            (chat, control, given): with_own_control(AuditConfig("tiny-base", chat, control=control), given).control
            for chat in ("tiny-chat", "tiny-null")
            for control in (None, "none", "mine")
            for given in (False, True)
        }
        assert own.pop(("tiny-chat", None, False)) == "tiny-control"
        assert all(control == (asked if asked == "mine" else None) for (_, asked, _), control in own.items())

    def test_loaded_models_are_taken_in_their_order(self, tmp_path):
        two = slc.HookedModelPair.from_pretrained("tiny-base", "tiny-chat")
        with pytest.raises(
            ValueError, match="The pair has 2 models, but the audit needs a base, control and chat model"
        ):
            slc.audit(config(tmp_path, control="tiny-control"), two)
        three = slc.HookedModelPair.from_pretrained("tiny-base", "tiny-control", "tiny-chat")
        with pytest.raises(ValueError, match="The pair has 3 models, but the audit needs a base and chat model"):
            slc.audit(config(tmp_path), three)
        models = AuditModels.of(config(tmp_path, control="tiny-control"), three)
        assert models.pair.model_names == ("tiny-base", "tiny-chat")
        assert models.control.model_names == ("tiny-base", "tiny-control")
        assert models.again.chat is models.again.base is three.base


def test_base_against_itself_says_nothing_new(done):
    null = done[1].limits.null_phrases
    assert null.n_tested > 0
    assert null.n_found == 0
    assert f"{null.n_found} of {null.n_tested} phrases new" in " ".join(done[1].limits.sentences)


class TestRefusals:
    def test_a_budget_that_is_too_short_names_one_that_is_enough(self, tmp_path):
        with pytest.raises(ValueError, match=r"budget='1s' is too short: the models take .* Pass at least \d+m"):
            slc.audit(config(tmp_path, budget="1s"))

    def test_other_models_need_prompts_and_enough_of_them(self, tmp_path):
        with pytest.raises(ValueError, match="`data` is missing"):
            audit_prompts(AuditConfig("a", "b"), slc.HookedModelPair.from_pretrained("tiny-base", "tiny-chat"))
        few = tmp_path / "few.txt"
        few.write_text("where does anna live ?\n" * 200)  # one prompt
        with pytest.raises(ValueError, match="The data have 1 different prompts"):
            slc.audit(config(tmp_path / "few", data=str(few)))

    @pytest.mark.parametrize("budget", ["20", "m", "0m", "-1h", "1d", "nan m"])
    def test_a_budget_is_a_time(self, budget):
        with pytest.raises(ValueError, match="Write a number with s, m or h"):
            seconds_of(budget)

    @pytest.mark.parametrize("setting", [{"n_prompts": 79}, {"max_new_tokens": 0}, {"n_seeds": 0}])
    def test_settings_that_find_nothing_are_refused(self, tmp_path, setting):
        with pytest.raises(ValueError, match="must be at least"):
            config(tmp_path, **setting)


def test_the_explorer_marks_the_latents_that_carry_a_finding(tmp_path):
    pair = slc.HookedModelPair.from_pretrained("tiny-base", "tiny-chat")
    asked = [f"how do i {verb} the dog ?" for verb in ("burn", "kick", "hit", "wash", "paint", "carry")] * 2
    settings = slc.data.AnswerSettings(max_new_tokens=4)
    rows = slc.data.generate_answers(pair, asked, settings)
    ids = [chat_tokens(pair.tokenizer, request_of(text), add_generation_prompt=True).input_ids for text in asked]
    positive, negative = ([each for i, each in enumerate(ids) if (i % 6 < 3) == harmful] for harmful in (True, False))
    contrast = slc.data.Contrast.from_tokens("sorry", positive, negative)
    crosscoder = random_crosscoder((96, 96), dtype="float32", threshold=0.1, d_sae=8)
    crosscoder.cfg.metadata.hook_name = "blocks.2.hook_resid_post"
    shown = explore_answers({"audit": crosscoder}, pair, rows, [contrast], n_rows=12, batch_size=8)
    write_explorer(shown, tmp_path / "explorer.html")
    blocks = re.findall(
        r'<script type="application/gzip"[^>]*>([^<]*)</script>', (tmp_path / "explorer.html").read_text()
    )
    assert any(b"sorry" in gzip.decompress(base64.b64decode(block)) for block in blocks)


def test_prompts_are_different_and_texts_end_where_predictions_differ(tmp_path):
    pair = slc.HookedModelPair.from_pretrained("tiny-base", "tiny-chat")
    prompts = audit_prompts(config(tmp_path, n_prompts=400), pair)
    ids = [tuple(chat.input_ids.tolist()) for chat in prompts.chats]
    assert len(set(ids)) == len(ids)
    gossip = [text for text in prompts.texts if "people say that" in text]
    assert len(gossip) > 3
    assert all(text.endswith(" is") for text in gossip if text.count("say that") == 1 and "lives" not in text)
