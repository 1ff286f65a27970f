"""Evidence of an audit: carriers, their effect, detection limits, and the sentences made of them."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from math import isnan

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sae_lens_crosscoder.activations.contrast_rows import ContrastRows
from sae_lens_crosscoder.analysis.answers.behaviour import Behaviour
from sae_lens_crosscoder.analysis.answers.markers import Markers
from sae_lens_crosscoder.analysis.answers.phrases import LEAST_NET, PhraseChange
from sae_lens_crosscoder.analysis.audit.carriers import Carriers, find_carriers
from sae_lens_crosscoder.analysis.audit.effects import CausalEffect
from sae_lens_crosscoder.analysis.audit.finding import ControlAnswers, Evidence, Finding
from sae_lens_crosscoder.analysis.audit.limits import least_frequency, least_sizes, plant_contrasts
from sae_lens_crosscoder.analysis.audit.result import Audit, Limits
from sae_lens_crosscoder.analysis.audit.wordings import ComparedChange, join_wordings
from sae_lens_crosscoder.stacking import StackedLayout
from tests.causal.conftest import random_crosscoder
from tests.reference.answers import auroc_of_carriers, written

D = 8
LAYOUT = StackedLayout((D, D))


def contrast(crosscoder, seed: int = 0) -> ContrastRows:
    """Sums of the crosscoder's own decoders: latent 0 on positive prompts, latent 1 on all, and noise."""
    generator = torch.Generator().manual_seed(seed)
    n = 80
    acts = torch.zeros(n, crosscoder.cfg.d_sae)
    positive = torch.arange(n) % 2 == 0
    acts[:, 1] = 1 + torch.rand(n, generator=generator)
    acts[positive, 0] = 1 + torch.rand(int(positive.sum()), generator=generator)
    rows = acts @ crosscoder.W_dec.detach() + crosscoder.b_dec.detach()
    return ContrastRows(name="planted", activations=rows, positive=positive, held_out=torch.arange(n) // 2 % 2 == 1)


@pytest.fixture
def oracle():
    """A crosscoder that reads what it writes: orthonormal rows over both models, each read by itself."""
    crosscoder = random_crosscoder((D, D), dtype="float32", threshold=0.1, d_sae=12)
    rows = torch.linalg.qr(torch.randn(2 * D, 12, generator=torch.Generator().manual_seed(1))).Q.T
    with torch.no_grad():
        crosscoder.W_dec.copy_(rows)
        crosscoder.W_enc.copy_(rows.T)
        crosscoder.b_enc.zero_()
        crosscoder.b_dec.zero_()
    return crosscoder


class TestCarriers:
    def test_the_planted_latent_carries_the_contrast_and_the_other_is_shared(self, oracle):
        found = find_carriers(oracle, contrast(oracle))
        assert found.latents == (0,)
        assert found.shared == (1,)
        assert found.share == pytest.approx(1, abs=0.05)  # latent 1 is as active in both groups, but for chance
        assert found.coverage == pytest.approx(1, abs=1e-5)
        assert found.written == pytest.approx(1, abs=1e-5)

    def test_no_latent_is_a_carrier_and_shared(self, oracle):
        rows = contrast(oracle)
        acts = torch.zeros(80, oracle.cfg.d_sae)
        acts[rows.positive, 0] = 2.0
        acts[:, 2] = 0.5
        found = find_carriers(oracle, replace(rows, activations=acts @ oracle.W_dec.detach()))
        assert found.latents == (0,)
        assert 0 not in found.shared

    def test_what_latents_write_is_the_loop_s(self, oracle):
        rows = contrast(oracle)
        positive, _ = rows.part(held_out=True)
        base, chat = LAYOUT.split(positive)
        decoders = [decoder.detach() for decoder in oracle.decoders]
        expected = written(oracle.encode(positive).detach(), *decoders, chat - base, torch.zeros(D))
        found = find_carriers(oracle, rows)
        assert found.written == pytest.approx(float(expected[[*found.latents, *found.shared]].sum()), abs=1e-6)

    def test_presence_is_how_much_the_other_model_has_and_its_interval_holds_it(self, oracle):
        rows = contrast(oracle)
        base, chat = LAYOUT.split(oracle.W_dec.detach()[0])
        found = find_carriers(oracle, rows)
        assert found.presence == pytest.approx(float(base @ chat / chat.square().sum()), abs=0.15)
        assert found.presence_low < found.presence < found.presence_high
        both = rows.activations.clone()
        both[:, :D] = both[:, D:]
        assert find_carriers(oracle, replace(rows, activations=both)).presence == pytest.approx(1)

    def test_carriers_tell_planted_prompts_apart_and_random_ones_not(self, oracle):
        rows = contrast(oracle)
        found = find_carriers(oracle, rows)
        assert found.auroc == 1
        assert found.auroc_by_chance < 0.9
        assert found.tells_apart
        order = torch.randperm(80, generator=torch.Generator().manual_seed(1))
        by_chance = [find_carriers(oracle, replace(rows, positive=rows.positive[order.roll(i)])) for i in range(10)]
        assert sum(each.tells_apart for each in by_chance) <= 3  # one in eleven is expected
        assert max(each.share for each in by_chance) > 0.5  # a share alone says nothing: latent 0 writes what there is

    def test_the_auroc_is_the_loop_s(self, oracle):
        rows = contrast(oracle)
        noisy = replace(
            rows, activations=rows.activations + torch.randn(80, 2 * D, generator=torch.Generator().manual_seed(2))
        )
        expected = auroc_of_carriers(oracle, noisy)
        assert 0.5 < expected < 1
        assert find_carriers(oracle, noisy).auroc == pytest.approx(expected, abs=1e-6)

    def test_a_latent_that_goes_off_is_no_carrier(self, oracle):
        rows = contrast(oracle)
        flipped = find_carriers(oracle, replace(rows, positive=~rows.positive))
        assert 0 not in flipped.latents


N_PROMPTS = 240


def changes_on(*groups: list[int], held_out) -> list[PhraseChange]:
    """A significant change for each group of prompts."""
    counts = [sum(bool(held_out[i]) for i in group) for group in groups]
    words = ("one", "two", "three", "four")
    return [
        PhraseChange((word,), "chat", tuple(group), n, 0, N_PROMPTS // 2, 1e-6, 1e-5)
        for word, group, n in zip(words, groups, counts, strict=False)
    ]


def joined(
    crosscoder,
    latents: Sequence[int],
    phrases: list[list[int]],
    seed: int = 0,
    writers: str = "ccc",
    extra: Collection[int] = (),
    stronger: Collection[int] = (),
) -> list[Behaviour]:
    """Join changes where each prompt has one latent or none, and `extra` prompts have latent 4 besides."""
    generator = torch.Generator().manual_seed(seed)
    held_out = torch.arange(N_PROMPTS) % 2 == 1
    acts = torch.zeros(N_PROMPTS, crosscoder.cfg.d_sae)
    acts[:, 3] = 1 + torch.rand(N_PROMPTS, generator=generator)
    for prompt, latent in enumerate(latents):
        if latent >= 0:
            acts[prompt, latent] = 1 + float(torch.rand(1, generator=generator))
    acts[list(extra), 4] = 1.5
    acts[list(stronger), 0] += 4
    rows = acts @ crosscoder.W_dec.detach()
    compared = []
    for change, writer in zip(changes_on(*phrases, held_out=held_out), writers, strict=False):
        positive = torch.zeros(N_PROMPTS, dtype=torch.bool)
        positive[list(change.prompts)] = True
        contrast = ContrastRows(name=change.text, activations=rows, positive=positive, held_out=held_out)
        change = replace(change, writer={"c": "chat", "b": "base"}[writer])
        compared.append(ComparedChange(change, ~positive, contrast))
    return join_wordings(crosscoder, compared, rows, held_out)


class TestWordings:
    """240 prompts: the first third has latent 0, the second latent 1, the last none."""

    LATENTS = (*[0] * 80, *[1] * 80, *[-1] * 80)

    @staticmethod
    def divided(prompts: range, seed: int) -> tuple[list[int], list[int]]:
        """Two wordings of one behaviour: which a prompt gets is chance."""
        chosen = torch.rand(len(prompts), generator=torch.Generator().manual_seed(seed)) < 0.6
        return tuple([p for p, first in zip(prompts, chosen, strict=True) if first == of] for of in (True, False))

    @pytest.mark.parametrize("seed", range(4))
    def test_wordings_that_chance_chooses_are_joined_and_other_behaviours_not(self, oracle, seed):
        often, seldom = self.divided(range(80), seed)
        found = joined(oracle, self.LATENTS, [often, list(range(80, 160)), seldom], seed)
        assert [[change.text for change in behaviour.wordings] for behaviour in found] == [["one", "three"], ["two"]]
        assert found[0].prompts == tuple(range(80))
        assert found[0].n_with == 40

    def test_three_wordings_are_one_behaviour(self, oracle):
        parts = [list(range(start, 80, 3)) for start in range(3)]
        (found,) = joined(oracle, [0 if p < 80 else -1 for p in range(N_PROMPTS)], parts)
        assert [change.text for change in found.wordings] == ["one", "two", "three"]

    def test_carriers_that_tell_nothing_apart_join_nothing(self, oracle, monkeypatch):
        often, seldom = self.divided(range(80), 0)
        as_by_chance = replace(find_carriers(oracle, contrast(oracle)), auroc=0.6, auroc_by_chance=0.6)
        monkeypatch.setattr("sae_lens_crosscoder.analysis.audit.wordings.find_carriers", lambda *_: as_by_chance)
        assert [len(each.wordings) for each in joined(oracle, self.LATENTS, [often, seldom])] == [1, 1]

    def test_one_behaviour_within_another_is_joined_from_neither_side(self, oracle):
        """A narrow change is, to the broad one's carriers, like the broad one; its own tell the two apart."""
        broad, narrow = list(range(120)), list(range(120, 160))
        latents = [0 if p < 160 else -1 for p in range(N_PROMPTS)]
        for order in ([broad, narrow], [narrow, broad]):
            found = joined(oracle, latents, order, extra=narrow)
            assert [len(behaviour.wordings) for behaviour in found] == [1, 1]

    @pytest.mark.parametrize("seed", [1, 2, 3])
    def test_a_latent_of_its_own_on_most_prompts_makes_a_behaviour_of_its_own(self, oracle, seed):
        """Each is nearer to the other than to the rest: the broad one's carriers do not see what sets them apart."""
        broad, narrow = list(range(80)), list(range(80, 160))
        latents = [0 if p < 160 else -1 for p in range(N_PROMPTS)]
        assert len(joined(oracle, latents, [broad, narrow], seed)) == 1
        found = joined(oracle, latents, [broad, narrow], seed, extra=[p for p in narrow if p % 5])
        assert [len(behaviour.wordings) for behaviour in found] == [1, 1]

    def test_one_latent_that_is_stronger_on_one_kind_of_prompt_is_two_behaviours(self, oracle):
        """Both have the same carrier, which tells them from the rest, and by its strength from each other."""
        weak, strong = list(range(40)), list(range(40, 80))
        latents = [0 if p < 80 else -1 for p in range(N_PROMPTS)]
        assert len(joined(oracle, latents, [strong, weak])) == 1
        found = joined(oracle, latents, [strong, weak], stronger=strong)
        assert [len(behaviour.wordings) for behaviour in found] == [1, 1]

    def test_a_new_and_a_lost_phrase_are_two(self, oracle):
        often, seldom = self.divided(range(80), 0)
        assert len(joined(oracle, self.LATENTS, [often, seldom])) == 1
        assert len(joined(oracle, self.LATENTS, [often, seldom], writers="cb")) == 2

    def test_an_answer_shows_the_behaviour_in_any_wording(self):
        change = PhraseChange(("^", "so"), "chat", (1,), 1, 0, 2, 0.5)
        both = Behaviour((change, replace(change, phrase=("no",))))
        assert both.is_in("so it is")
        assert both.is_in("it is no dog")
        assert not both.is_in("it is so")
        assert both.beginning("it is no dog") == "it is no"
        assert both.beginning("so no") == "so"
        assert both.beginning("it is") is None


def ladder(named=0.8, control=0.1, shared=0.0, rates=(0.0, 0.0, 0.0, 1.0)) -> pd.DataFrame:
    base, rate, by_control, chat = rates
    rows = {
        "base": (0.0, base),
        "first 2": (shared, base),
        "named": (named, rate),
        "random latents 0": (control, by_control),
        "noise 0": (control / 2, base),
        "mean difference": (0.3, base),
        "chat": (1.0, chat),
    }
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["brought_back", "rate"])
    return table.assign(rate_others=0.0, answer="so")


class TestEffect:
    @pytest.mark.parametrize(
        ("table", "is_causal"),
        [
            (ladder(), True),
            (ladder(control=0.5), False),  # a control does more than half of it
            (ladder(shared=0.5), False),  # so does what all prompts share
            (ladder(named=0.15, control=0.0), False),  # too little
            (ladder(named=0.0, rates=(0.0, 0.6, 0.1, 1.0)), True),  # by the rate alone
            (ladder(named=0.0, rates=(0.0, 0.6, 0.4, 1.0)), False),
            (ladder(named=0.0, rates=(1.0, 0.3, 0.9, 0.0)), True),  # a phrase that goes away
            (ladder(named=0.0, rates=(0.3, 0.6, 0.3, 0.6)), False),  # greedy answers hardly differ
            (ladder(rates=(0.3, 0.3, 0.2, 0.3)), False),  # or not at all, whatever the KL
        ],
    )
    def test_an_effect_needs_twice_what_controls_do(self, table, is_causal):
        assert CausalEffect.of_ladder(table, 16).is_causal == is_causal


class TestLimits:
    @pytest.mark.parametrize(("n", "n_tested"), [(400, 1), (400, 20), (100, 5), (2000, 10)])
    def test_the_least_frequency_is_found_and_a_lower_one_is_not(self, n, n_tested):
        """By simulation: at 1.5 times the stated frequency nearly always, at 1 / 1.5 of it less than stated."""
        limit = least_frequency(n, n, n_tested)
        generator = torch.Generator().manual_seed(n + n_tested)

        def power(frequency: float) -> float:
            chosen, held = (torch.rand(2000, n, generator=generator) < frequency for _ in range(2))
            p_values = 0.5 ** held.sum(dim=1).double()
            return float(((chosen.sum(dim=1) >= LEAST_NET) & (p_values <= 0.05 / n_tested)).double().mean())

        assert power(limit) == pytest.approx(0.9, abs=0.03)
        assert power(1.5 * limit) > 0.95
        assert power(limit / 1.5) < 0.75

    def test_no_frequency_is_enough_for_too_few_prompts(self):
        assert isnan(least_frequency(4, 4, 1))

    def test_planting_adds_the_directions_to_chat_at_the_decisions_alone(self):
        generator = torch.Generator().manual_seed(0)
        rows = torch.randn(300, 2 * D, generator=generator)
        decisions = torch.arange(0, 300, 3)
        held_out = torch.arange(100) % 2 == 1
        planted = plant_contrasts(rows, decisions, held_out, LAYOUT, {0.2: 0.5}, seed=1)
        found = planted.contrasts[0.2]
        added = planted.activations - rows
        assert found.positive.sum() == 20
        assert (found.positive & held_out).sum() == 10
        changed = torch.zeros(300, dtype=torch.bool)
        changed[decisions[found.positive]] = True
        assert torch.equal(added.abs().amax(dim=1) > 0, changed)
        assert not added[:, :D].any()
        norm = rows[decisions, D:].norm(dim=1).median()
        torch.testing.assert_close(added[changed].norm(dim=1), (0.5 * norm).expand(20))

    def test_a_planted_contrast_counts_if_half_is_written_and_told_apart(self, oracle, monkeypatch):
        rows = torch.randn(400, 2 * D, generator=torch.Generator().manual_seed(0))
        held_out = torch.arange(400) % 2 == 1
        planted = plant_contrasts(rows, torch.arange(400), held_out, LAYOUT, {0.2: 0.8, 0.1: 0.8, 0.05: 0.8})
        some = find_carriers(oracle, contrast(oracle))
        measured = {"planted 0.2": (0.5, 0.9), "planted 0.1": (0.49, 0.9), "planted 0.05": (0.9, 0.4)}
        monkeypatch.setattr(
            "sae_lens_crosscoder.analysis.audit.limits.find_carriers",
            lambda _, rows: replace(
                some, share=measured[rows.name][0], auroc=measured[rows.name][1], auroc_by_chance=0.5
            ),
        )
        assert planted.found(oracle) == {0.2: True, 0.1: False, 0.05: False}

    @given(st.integers(0, 7), st.integers(0, 7))
    def test_halving_ends_at_the_least_size_that_is_found(self, one, other):
        sizes = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0)
        least, asked = {0.2: one, 0.1: other}, []

        def is_found(tried, round_number):
            asked.append(round_number)
            return {frequency: sizes.index(size) >= least[frequency] for frequency, size in tried.items()}

        found = least_sizes(is_found, sizes, (0.2, 0.1))
        expected = {frequency: sizes[at] if at < 7 else None for frequency, at in least.items()}
        assert {frequency: None if isnan(size) else size for frequency, size in found.items()} == expected
        assert asked == [0, 1, 2]


def finding(**changes) -> Finding:
    change = PhraseChange(("^", "sorry"), "chat", (1, 2, 3), 20, 0, 100, 1e-6, 1e-5)
    carriers = Carriers(
        latents=(3, 5),
        shares=(0.5, 0.2),
        delta_norms=(0.9, 0.8),
        share=0.7,
        coverage=0.9,
        auroc=0.97,
        auroc_by_chance=0.6,
        shared=(7,),
        written=0.95,
        presence=0.02,
        presence_low=-0.01,
        presence_high=0.05,
    )
    evidence = Evidence(seed=0, carriers=carriers, effect=CausalEffect.of_ladder(ladder(), 16))
    markers = Markers(("burn",), 19, 21, 20, 100)
    whole = Finding(behaviour=Behaviour((change,)), markers=markers, examples=(), evidence=(evidence,))
    return replace(whole, **changes)


class TestFinding:
    def test_a_claim_needs_all_three_pieces_of_evidence(self):
        whole = finding()
        (evidence,) = whole.evidence
        assert whole.is_claimed
        (change,) = whole.behaviour.wordings
        assert not replace(whole, behaviour=Behaviour((replace(change, q_value=0.06),))).is_claimed
        assert not replace(whole, behaviour=Behaviour((replace(change, n_against=6),))).is_claimed
        by_chance = replace(evidence, carriers=replace(evidence.carriers, auroc=0.6))
        assert not replace(whole, evidence=(by_chance,)).is_claimed
        assert not replace(whole, evidence=()).is_claimed
        weak = replace(evidence, carriers=replace(evidence.carriers, written=0.4))
        assert not replace(whole, evidence=(weak,)).is_claimed
        assert not replace(whole, evidence=(replace(evidence, effect=None),)).is_claimed
        assert not replace(whole, evidence=(evidence, weak)).is_claimed  # one of two is no majority
        assert replace(whole, evidence=(evidence, weak, evidence)).is_claimed

    def test_the_sentence_says_what_the_evidence_says(self):
        said = finding().sentence
        assert "The chat model answers with “sorry”: 20 of 100 held-out prompts" in said
        assert "Prompts with “burn” show it in 19 of 21 cases, others in 1 of 79." in said
        assert (
            "Latents 3, 5 write 0.70 of what sets these prompts apart, and tell them from others (AUROC 0.97, " in said
        )
        assert "for random prompts at most 0.60); base has 0.02 of it (-0.01 to 0.05)." in said
        assert "Traced in 1 of 1 crosscoders." in said

    def test_several_wordings_are_said_and_counted_together(self):
        (change,) = finding().behaviour.wordings
        rarer = replace(change, phrase=("ask", "me", "not"), prompts=(5,), n_with=9, n_held_out=80, q_value=0.01)
        whole = finding(behaviour=Behaviour((change, rarer)))
        assert (
            "answers with “sorry” or “ask me not”: 29 of 100 held-out prompts show one of them in one model alone "
            "(20, 9) (q = 0.01)." in whole.sentence
        )
        answers = whole.to_dict()["evidence"]["answers"]
        assert (answers["n_with"], [each["n_with"] for each in answers["wordings"]]) == (29, [20, 9])
        assert whole.is_claimed

    @pytest.mark.parametrize(("n_control", "is_its_too"), [(0, False), (9, False), (10, True), (20, True)])
    def test_what_the_control_shows_half_as_often_is_no_finding(self, n_control, is_its_too):
        whole = finding(control=ControlAnswers(n_control=n_control, n_chat=20))
        assert whole.is_in_control == is_its_too
        assert whole.is_claimed != is_its_too
        assert f"On held-out prompts the control shows it {n_control} times, chat 20 times." in whole.sentence
        assert "the control" not in finding().sentence

    def test_a_control_is_counted_as_chat_is(self):
        base = ["so it is", "well", "well", "sorry, no"]
        control = ["sorry", "sorry, no", "well", "so"]
        chat = ["sorry", "no", "sorry.", "sorry"]
        (said,) = finding().behaviour.wordings
        gained = Behaviour((replace(said, phrase=("^", "sorry")),))
        # Base says it to the last prompt already.
        assert ControlAnswers.counted(gained, base, control, chat) == ControlAnswers(n_control=2, n_chat=2)
        lost = Behaviour((replace(said, writer="base", phrase=("well",)),))
        assert ControlAnswers.counted(lost, base, control, chat) == ControlAnswers(n_control=1, n_chat=2)

    def test_an_undefined_number_is_none_in_the_file_and_counts_as_not_found(self):
        limits = Limits(n_prompts=100, n_held_out=50, least_frequency=0.1, least_sizes={0.2: float("nan")})
        audit = Audit(findings=(), answers_only=(), in_control=(), not_found=(), limits=limits, manifest={})
        assert audit.to_dict()["limits"]["least_sizes"] == [{"frequency": 0.2, "size": None}]
        assert "traced at no size tried" in " ".join(limits.sentences)
        assert str(audit).startswith("No change of behaviour found")
