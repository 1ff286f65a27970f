"""Laws of the causal experiment: KL against a loop, self-checks that must be 0, windows, intervals, latent sets."""

import itertools
import math
from inspect import unwrap

import pandas as pd
import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.causal import Responses
from sae_lens_crosscoder.causal.experiment.effect_sums import EffectSums, token_of_turn
from sae_lens_crosscoder.causal.experiment.effects import carried_energy
from sae_lens_crosscoder.causal.experiment.setups import (
    Setup,
    chat_leaning_halves,
    latent_setups,
    plain_setups,
    random_controls,
    threshold_sets,
)
from sae_lens_crosscoder.causal.forward.response_batches import response_batches
from sae_lens_crosscoder.crosscoders.two_models import TwoModels
from sae_lens_crosscoder.models.tiny import dialogues
from tests.causal.conftest import HOOK, LATENTS, Case, random_crosscoder, thresholds
from tests.crosscoders.conftest import as_lists
from tests.models.small_models import random_hooked_transformer
from tests.reference.causal import activations, edited

WINDOWS = {"all": range(1, 99), "token 1": [1], "tokens 2-10": range(2, 11), "tokens 11+": range(11, 99)}


@pytest.fixture
def response(case):
    """Conversations of one turn, of two turns, and of one token at the end."""
    response = torch.zeros_like(case.tokens, dtype=torch.bool)
    response[0, 1:] = response[1, 2:4] = response[1, 5:9] = response[2, 11:] = True
    return response


@pytest.fixture
def template(case):
    return torch.arange(case.tokens.shape[1]).expand_as(case.tokens) % 3 == 0


def edited_activation(case, how, models, start, latents=range(10)):
    """Model `start`'s activation after an intervention, token by token."""
    h = [case.activation(m) for m in (0, 1)]
    new = h[start].clone()
    for prompt, position in torch.ones_like(case.tokens).nonzero().tolist():
        token = [part[prompt, position].tolist() for part in h]
        weights = as_lists(case.crosscoder)
        new[prompt, position] = torch.tensor(
            edited(token, weights, thresholds(case.crosscoder), list(latents), how, models)[start]
        )
    return new


def by_loops(case, activation, response):
    """Sums of KL, loss and agreement per window and conversation, from one hook and one full forward pass."""
    chat, patched = case.pair.chat(case.tokens), case.logits(1, activation)
    sums = torch.zeros(3, len(WINDOWS), len(response), dtype=torch.float64)
    for c, row in enumerate(response.tolist()):
        place = 0
        for t, is_response in enumerate(row):
            place = place + 1 if is_response else 0
            if is_response:
                p, q = chat[c, t - 1].double().softmax(-1), patched[c, t - 1].double().softmax(-1)
                kl, loss = (p * (p / q).log()).sum().item(), -math.log(q[case.tokens[c, t]])
                for w, places in enumerate(WINDOWS.values()):
                    if place in places:
                        sums[:, w, c] += torch.tensor([kl, loss, float(p.argmax() == q.argmax())])
    return sums


def kl_by_loops(case, activation, response):
    return by_loops(case, activation, response)[0]


def per_token(kl):
    """What is measured at every token, where only its KL matters."""
    return torch.stack([kl, torch.zeros_like(kl), torch.zeros_like(kl)])


def run(case, response, setups, template=None, **kwargs):
    return slc.causal.kl_to_chat(
        case.crosscoder, case.pair, Responses(case.tokens, response, template), setups, **kwargs
    )


class TestAgainstHooksByHand:
    def test_every_plain_setup(self, case, response, template):
        sums = run(case, response, plain_setups(TwoModels.of(case.crosscoder), has_template=True), template=template)
        base, chat = case.activation(0), case.activation(1)
        activations = {
            "none": base,
            "all": edited_activation(case, "replace", (0,), start=0),
            "error": edited_activation(case, "replace", (1,), start=1),
            "chat": chat,
            "template": torch.where(template[..., None], chat, base),
        }
        assert [setup.name for setup in sums.setups] == list(activations)
        for s, activation in enumerate(activations.values()):
            torch.testing.assert_close(sums.totals[:, s], by_loops(case, activation, response), rtol=1e-4, atol=1e-6)
        agree = dict(zip(activations, sums.totals[2, :, 0].sum(dim=-1).tolist(), strict=True))
        assert agree["chat"] == response.sum() > agree["none"]

    def test_sets_of_latents_in_both_variants(self, case, response):
        sums = run(case, response, latent_setups(TwoModels.of(case.crosscoder), {"mine": LATENTS}))
        assert [setup.variant for setup in sums.setups] == ["replace", "add"]
        for s, how in enumerate(("replace", "add")):
            activation = edited_activation(case, how, (0,), start=0, latents=LATENTS)
            torch.testing.assert_close(sums.totals[:, s], by_loops(case, activation, response), rtol=1e-4, atol=1e-6)


class TestSelfChecks:
    def test_the_chat_models_own_activation_gives_zero_and_the_others_do_not(self, case, response):
        sums = run(case, response, plain_setups(TwoModels.of(case.crosscoder), has_template=False))
        per_setup = dict(zip([setup.name for setup in sums.setups], sums.totals[0, :, 0].sum(dim=-1), strict=True))
        assert abs(per_setup.pop("chat")) <= 1e-6
        assert min(per_setup.values()) > 1e-4

    def test_an_empty_set_is_none(self, case, response):
        sums = run(case, response, [Setup("none"), *latent_setups(TwoModels.of(case.crosscoder), {"empty": []})])
        assert torch.equal(sums.totals[:, 0], sums.totals[:, 1])
        assert torch.equal(sums.totals[:, 0], sums.totals[:, 2])

    @pytest.mark.parametrize(("everywhere", "twin"), [(True, "chat"), (False, "none")])
    def test_a_template_of_everything_is_the_chat_model_and_of_nothing_the_base_model(
        self, case, response, everywhere, twin
    ):
        setups = plain_setups(TwoModels.of(case.crosscoder), has_template=True)
        sums = run(case, response, setups, template=torch.full_like(response, everywhere))
        names = [setup.name for setup in setups]
        assert torch.equal(sums.totals[:, names.index("template")], sums.totals[:, names.index(twin)])

    def test_batched_is_one_by_one(self, case, response):
        setups = plain_setups(TwoModels.of(case.crosscoder), has_template=False)
        one, many = (run(case, response, setups, batch_size=size).totals for size in (1, 3))
        torch.testing.assert_close(one, many, rtol=1e-4, atol=1e-6)

    def test_the_bias_may_be_carried_over(self, case, response):
        two = TwoModels.of(case.crosscoder)
        without, with_bias = (plain_setups(two, False, with_bias=bias)[1] for bias in (False, True))
        batch = next(response_batches(two, case.pair, Responses(case.tokens, response), batch_size=3))
        difference = with_bias.residual(batch, None) - without.residual(batch, None)
        base, chat = case.crosscoder.decoder_biases
        torch.testing.assert_close(difference, (chat - base).expand_as(difference), rtol=0, atol=1e-5)


class TestWindowsAndIntervals:
    def test_windows_restart_at_every_turn_and_share_out_all_tokens(self, case, response):
        assert token_of_turn(response)[1].tolist() == [0, 0, 1, 2, 0, 1, 2, 3, 4, 0, 0, 0]
        sums = EffectSums([Setup("none")], response)
        assert sums.n_tokens.tolist() == [[11, 6, 1], [1, 2, 1], [9, 4, 0], [1, 0, 0]]
        sums.add(0, torch.tensor([1]), per_token(torch.arange(1.0, 7.0)))
        assert sums.totals[0, 0, :, 1].tolist() == [21.0, 1.0 + 3.0, 2.0 + 4.0 + 5.0 + 6.0, 0.0]

    def test_means_are_per_token_and_reductions_are_paired(self):
        response = torch.tensor([[False] + [True] * 4, [False, True, False, False, False]] * 10)
        sums = EffectSums([Setup("none"), Setup("half")], response)
        kl = torch.rand(int(response.sum()), generator=torch.Generator().manual_seed(0))
        for index, factor in enumerate((1.0, 0.5)):
            sums.add(index, torch.arange(20), per_token(factor * kl))
        table = sums.table().set_index(["setup", "window"])
        assert table.kl_nats["none", "all"] == pytest.approx(kl.mean().item(), rel=1e-5)
        assert table.kl_nats_low["none", "all"] < kl.mean().item() < table.kl_nats_high["none", "all"]
        # Every conversation is halved, so there is no doubt about the ratio, however much the KL itself varies.
        for column in ("reduction", "reduction_low", "reduction_high"):
            assert table[column]["half", "all"] == pytest.approx(0.5, abs=1e-6)
        assert math.isnan(table.kl_nats["none", "tokens 11+"])

    def test_intervals_are_as_wide_as_conversations_differ(self):
        """The bootstrap's standard error of a mean of equal conversations is that of the conversations' means."""
        generator = torch.Generator().manual_seed(0)
        of_conversation = torch.rand(400, generator=generator)
        sums = EffectSums([Setup("none")], torch.tensor([[False, True, True]] * 400))
        sums.add(0, torch.arange(400), per_token(of_conversation.repeat_interleave(2)))
        row = sums.table().query("window == 'all'").iloc[0]
        expected = 2 * 1.96 * of_conversation.std().item() / 20
        assert row.kl_nats_high - row.kl_nats_low == pytest.approx(expected, rel=0.1)

    def test_long_conversations_count_by_their_tokens(self):
        """With the same KL at every token there is nothing to be uncertain about, however long conversations are."""
        response = torch.arange(12)[None] < torch.arange(2, 12)[:, None]
        response[:, 0] = False
        sums = EffectSums([Setup("none")], response)
        sums.add(0, torch.arange(10), per_token(torch.full((int(response.sum()),), 0.3)))
        row = sums.table().iloc[0]
        assert [row.kl_nats, row.kl_nats_low, row.kl_nats_high] == pytest.approx([0.3] * 3, abs=1e-6)

    def test_one_conversation_has_no_interval(self):
        sums = EffectSums([Setup("none")], torch.tensor([[False, True]]))
        sums.add(0, torch.tensor([0]), per_token(torch.tensor([0.3])))
        row = sums.table().iloc[0]
        assert row.kl_nats == pytest.approx(0.3)
        assert math.isnan(row.kl_nats_low)


class TestContrasts:
    """Two setups, 12 conversations of 3 tokens: how far apart their KL is, and whether that may be chance."""

    @pytest.fixture
    def differences(self):
        generator = torch.Generator().manual_seed(1)
        return torch.randn(12, generator=generator) + 0.6

    def sums(self, differences):
        response = torch.tensor([[False, True, True, True]] * len(differences))
        sums = EffectSums([Setup(name, variant="add") for name in ("worse", "better", "same")], response)
        for s, shift in enumerate((differences, torch.zeros(len(differences)), torch.zeros(len(differences)))):
            sums.add(s, torch.arange(len(differences)), per_token((5.0 + shift).repeat_interleave(3)))
        return sums

    def test_differences_and_p_values_are_those_of_all_exchanges(self, differences):
        table = self.sums(differences).contrasts([("worse", "better"), ("better", "worse")], n_resamples=20000)
        row, mirrored = (table[(table.setup == name) & (table.window == "all")].iloc[0] for name in ("worse", "better"))
        means = [
            abs(sum(sign * value for sign, value in zip(signs, differences.tolist(), strict=True)))
            for signs in itertools.product((1, -1), repeat=len(differences))
        ]
        exact = sum(mean >= means[0] - 1e-9 for mean in means) / len(means)
        assert 0.005 < exact < 0.2
        assert row.p_value == mirrored.p_value == pytest.approx(exact, abs=0.01)
        assert row.kl_nats_difference == pytest.approx(differences.mean().item(), abs=1e-5)
        assert row.kl_nats_difference_low == pytest.approx(-mirrored.kl_nats_difference_high)
        width = row.kl_nats_difference_high - row.kl_nats_difference_low
        assert width == pytest.approx(2 * 1.96 * differences.std(correction=0).item() / 12**0.5, rel=0.1)
        assert set(zip(table.against, table.variant, strict=True)) == {("better", "add"), ("worse", "add")}
        assert math.isnan(table[table.window == "tokens 11+"].p_value.iloc[0])

    def test_what_holds_in_every_conversation_is_as_sure_as_so_many_exchanges_can_tell(self, differences):
        row = self.sums(differences.abs().repeat(4)).contrasts([("worse", "better")], n_resamples=99).iloc[0]
        assert row.p_value == pytest.approx(1 / 100)

    def test_what_is_the_same_is_no_difference(self, differences):
        row = self.sums(differences).contrasts([("better", "same")]).iloc[0]
        assert (row.kl_nats_difference, row.p_value) == (0.0, 1.0)

    def test_a_setup_that_was_not_measured_is_left_out(self, differences):
        assert len(self.sums(differences).contrasts()) == 0


class TestChoices:
    @pytest.fixture
    def table(self):
        """Ten latents: 0 leans most to the chat model, 9 least; 2 is dead, 4 has no nu, 5 a nu out of range."""
        nan = float("nan")
        return pd.DataFrame(
            {
                "delta_norm": [1.0 - 0.1 * j for j in range(10)],
                "nu_error": [0.8, 0.1, 0.0, 0.5, nan, 2.5, 0.2, 0.3, 0.9, 0.9],
                "nu_reconstruction": [0.9, 0.1, 0.0, 0.4, 0.1, 0.1, 0.2, 0.3, 0.9, 0.9],
                "dead": [j in (2, 9) for j in range(10)],
            }
        )

    def test_halves_of_the_pool_by_delta_norm_and_by_ranks_of_nu(self, table):
        halves = chat_leaning_halves(table, pool_size=8)  # 0, 1, 3, 6, 7 are left; the middle one belongs to no half
        assert halves == {
            "top_delta_norm": [0, 1],
            "bottom_delta_norm": [6, 7],
            "top_nu": [1, 6],
            "bottom_nu": [3, 0],
        }

    def test_the_default_pool_is_the_papers_share(self):
        n = 1000
        numbers = torch.linspace(0, 1, n)
        columns = {"delta_norm": 1 - numbers, "nu_error": numbers, "nu_reconstruction": numbers}
        halves = chat_leaning_halves(pd.DataFrame(columns | {"dead": [False] * n}))
        assert halves["top_nu"] == list(range(21))
        assert halves["bottom_nu"] == list(range(22, 43))

    def test_a_pool_too_small_to_halve_is_refused(self, table):
        with pytest.raises(ValueError, match="Only 1 of the 1 most chat-leaning latents"):
            chat_leaning_halves(table, pool_size=1)

    def test_thresholds_choose_living_latents_and_leave_out_what_nothing_meets(self):
        labels, verdicts = ["chat_only"] * 3 + ["shared"], ["chat_specific", "complete_shrinkage", "dead", "shared"]
        table = pd.DataFrame({"label": labels, "verdict": verdicts, "dead": [False, False, True, False]})
        assert threshold_sets(table) == {"chat_only": [0, 1], "chat_specific": [0]}
        assert threshold_sets(table.loc[[1, 3]]) == {"chat_only": [1]}

    def test_energy_is_that_of_what_a_latent_carries_over(self, case):
        weights = as_lists(case.crosscoder)
        tokens = weights.tokens(case.pair.activations(case.tokens, HOOK).flatten(0, 1))
        f = [activations(h, weights, thresholds(case.crosscoder)) for h in tokens]
        expected = [
            sum((row[j] * (chat - base)) ** 2 for row in f for base, chat in zip(*weights.decoders[j], strict=True))
            for j in range(case.crosscoder.cfg.d_sae)
        ]
        energy = carried_energy(TwoModels.of(case.crosscoder), case.pair, case.tokens, batch_size=2)
        assert (energy > 0).any()
        torch.testing.assert_close(energy, torch.tensor(expected, dtype=torch.float64) / len(f), rtol=1e-4, atol=1e-8)

    def test_controls_are_alive_outside_the_pool_and_of_the_same_number_or_energy(self, table):
        energy = torch.tensor([5.0, 1.0, 9.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 9.0])
        controls = random_controls(table, chosen=[0], excluded=[0, 1], energy=energy)
        assert {name: len(latents) for name, latents in controls.items()} == {
            "random_same_number": 1,
            "random_same_energy": 5,
        }
        for seed in range(20):
            drawn = random_controls(table, [0], [0, 1], energy, seed)["random_same_energy"]
            assert set(drawn) <= {3, 4, 5, 6, 7, 8}
            assert len(set(drawn)) == 5
        assert set(random_controls(table, [2], [0, 1], energy)) == {"random_same_number"}  # 9 is more than all have


class TestTheTinyPair:
    """A crosscoder that holds the whole difference of the built-in models, written down rather than trained."""

    @pytest.fixture(scope="class")
    def conversations(self):
        pair = slc.HookedModelPair.from_pretrained("tiny-base", "tiny-chat")
        chats = [slc.data.chat_tokens(pair.tokenizer, messages) for messages in dialogues(6, seed=0, split="held_out")]
        width = max(len(chat.input_ids) for chat in chats)

        def padded(parts):
            return torch.stack([torch.nn.functional.pad(part, (0, width - len(part))) for part in parts])

        tokens, response, template = (
            padded([getattr(chat, name) for chat in chats]) for name in ("input_ids", "response", "template")
        )
        return pair, tokens, response, template

    def difference_crosscoder(self, d_model=96):
        """Latents j and j + d_model write the positive and the negative part of coordinate j of h_chat - h_base."""
        crosscoder = random_crosscoder((d_model, d_model), threshold=None, dtype="float32", d_sae=2 * d_model)
        eye, zeros = torch.eye(d_model), torch.zeros(d_model, d_model)
        signed = torch.cat([eye, -eye])
        with torch.no_grad():
            crosscoder.W_enc.copy_(torch.cat([-signed, signed], dim=1).T)
            crosscoder.W_dec.copy_(torch.cat([torch.cat([zeros, zeros]), signed], dim=1))
            crosscoder.b_enc.zero_()
        crosscoder.cfg.metadata.hook_name = "blocks.2.hook_resid_post"
        return crosscoder

    def test_carrying_over_the_whole_difference_makes_the_base_model_the_chat_model(self, conversations):
        pair, tokens, response, template = conversations
        crosscoder = self.difference_crosscoder()
        columns = {"label": "chat_only", "verdict": "chat_specific", "dead": False}
        table = pd.DataFrame({"delta_norm": 1.0, "nu_error": 0.0, "nu_reconstruction": 0.0, **columns}, range(192))
        responses = Responses(tokens, response, template)
        sets = {"whole": range(192)}
        result = slc.causal.causal_effects(crosscoder, pair, responses, table, sets=sets, pool_size=96)
        effects = result.table
        kl = effects.query("window == 'all'").set_index(["setup", "variant"]).kl_nats
        assert kl["chat", ""] == pytest.approx(0, abs=1e-6)
        for variant in ("replace", "add"):  # which are the same where the base model is not written to
            assert kl["whole", variant] == pytest.approx(0, abs=1e-5)
            assert kl["chat_only", variant] == kl["chat_specific", variant] == kl["whole", variant]
            assert 0 < kl["random_same_number", variant] < kl["none", ""]
        assert kl["error", "replace"] == pytest.approx(kl["none", ""], rel=1e-3)
        assert kl["none", ""] > 0.3
        assert set(effects.window) == set(WINDOWS)
        assert result.sums.totals.shape == (3, len(kl), 4, 6)
        contrasts = result.contrasts.query("window == 'all'").set_index(["setup", "against", "variant"])
        assert result.manifest["n_conversations"] == 6
        apart = kl["top_nu", "add"] - kl["random_same_number", "add"]
        assert contrasts.kl_nats_difference["top_nu", "random_same_number", "add"] == pytest.approx(apart)
        assert len(contrasts) == 4 * 2

    def test_the_assistants_words_and_the_end_of_its_turn_are_scored(self, conversations):
        pair, tokens, response, _ = conversations
        said = pair.tokenizer.decode(tokens[0][response[0]])
        answer = dialogues(6, seed=0, split="held_out")[0][1]["content"]
        assert said.startswith(answer)
        assert said.removeprefix(answer).strip().startswith("<eot>")


class TestRefusals:
    def test_masks_that_do_not_fit(self, case, response):
        for wrong, message in (
            (response[:, 1:], "response has shape"),
            (torch.zeros_like(response), "marks no token"),
            (torch.ones_like(response), "first token of a conversation"),
        ):
            with pytest.raises(ValueError, match=message):
                unwrap(Responses.__init__)(object.__new__(Responses), case.tokens, wrong)  # past the check of types

    def test_models_of_different_width(self, case, response):
        pair = slc.HookedModelPair(random_hooked_transformer(3, seed=1), random_hooked_transformer(4, seed=2))
        with pytest.raises(ValueError, match=r"base and chat have widths \(3, 4\)"):
            slc.causal.kl_to_chat(random_crosscoder((3, 4)), pair, Responses(case.tokens, response), [Setup("none")])

    def test_a_crosscoder_of_another_width(self, case, response):
        with pytest.raises(ValueError, match=r"of widths \(3, 4\), but the models have widths \(32, 32\) at "):
            run(Case(case.pair, random_crosscoder((3, 4)), case.tokens), response, [Setup("none")])
