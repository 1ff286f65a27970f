"""An experiment that was interrupted goes on to the very table of one that was not, and of nothing else."""

import pandas as pd
import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.causal import Responses
from sae_lens_crosscoder.causal.experiment import effects
from sae_lens_crosscoder.crosscoders.two_models import TwoModels
from sae_lens_crosscoder.storage import accumulators as checkpoint
from tests.causal.conftest import LATENTS, hooked_case, random_crosscoder

BATCH = 2


class PowerCutError(Exception):
    pass


@pytest.fixture(autouse=True)
def _every_batch_is_saved(monkeypatch):
    monkeypatch.setattr(checkpoint, "_SECONDS_BETWEEN_SAVES", 0.0)


@pytest.fixture
def case():
    """Of one kind of host: how the sums are stored has nothing to do with it."""
    return hooked_case()


@pytest.fixture
def conversations(case):
    """Seven, so that the last batch is shorter."""
    tokens = torch.cat([case.tokens, case.tokens.flip(0), case.tokens[:1].flip(1)])
    response = torch.zeros_like(tokens, dtype=torch.bool)
    response[:, 2:5] = response[1:4, 8:] = True
    return tokens, response


@pytest.fixture
def table():
    numbers = torch.linspace(1, 0, 10).tolist()
    columns = {"delta_norm": numbers, "nu_error": 0.1, "nu_reconstruction": numbers, "dead": False}
    return pd.DataFrame(columns | {"label": ["chat_only"] * 2 + ["shared"] * 8, "verdict": "shared"})


@pytest.fixture
def power(monkeypatch):
    """`power["n"]` batches are measured, and then nothing works any more."""
    measure, left = effects.response_batches, {"n": 99}

    def watched(*args):
        for batch in measure(*args):
            if left["n"] == 0:
                raise PowerCutError
            left["n"] -= 1
            yield batch

    monkeypatch.setattr(effects, "response_batches", watched)
    return left


@pytest.mark.parametrize("cuts", [(1,), (1, 1, 1), (2, 1)])
def test_an_interrupted_experiment_gives_the_unbroken_table_bit_for_bit(
    case, conversations, table, cuts, tmp_path, power
):
    path, template = tmp_path / "sums", conversations[0] % 3 == 0
    arguments = (case.crosscoder, case.pair, Responses(*conversations, template), table)
    options = {"pool_size": 6, "batch_size": BATCH}
    unbroken = slc.causal.causal_effects(*arguments, **options)
    for power["n"] in cuts:
        with pytest.raises(PowerCutError):
            slc.causal.causal_effects(*arguments, **options, checkpoint_path=path)
        assert path.exists()
    power["n"] = 99
    resumed = slc.causal.causal_effects(*arguments, **options, checkpoint_path=path)
    assert power["n"] == 99 - (4 - sum(cuts))
    pd.testing.assert_frame_equal(resumed.table, unbroken.table, check_exact=True)
    pd.testing.assert_frame_equal(resumed.contrasts, unbroken.contrasts, check_exact=True)
    assert resumed.manifest == unbroken.manifest
    assert torch.equal(resumed.sums.totals, unbroken.sums.totals)
    assert list(tmp_path.iterdir()) == []


def test_sums_of_anything_else_are_refused_by_name(case, conversations, tmp_path, power):
    path, (tokens, response) = tmp_path / "sums", conversations
    setups = effects.latent_setups(TwoModels.of(case.crosscoder), {"mine": LATENTS})

    def run(crosscoder=case.crosscoder, tokens=tokens, response=response, setups=setups, pair=case.pair, size=BATCH):
        responses = Responses(tokens, response)
        slc.causal.kl_to_chat(crosscoder, pair, responses, setups, batch_size=size, checkpoint_path=path)

    power["n"] = 2
    with pytest.raises(PowerCutError):
        run()
    power["n"] = 99
    before = path.read_bytes()
    others = [random_crosscoder((32, 32), dtype="float32", seed=1), slc.HookedModelPair(*case.pair.members)]
    others[1].model_names = ("a", "b")
    less, renamed = ({"mine": LATENTS[:2]}, {"yours": LATENTS})
    for change, what in (
        ({"crosscoder": others[0]}, "crosscoder"),
        ({"pair": others[1]}, "pair of models"),
        ({"tokens": tokens.flip(0)}, "set of conversations"),
        ({"response": response.roll(-1, dims=1)}, "set of conversations"),
        ({"setups": effects.latent_setups(TwoModels.of(case.crosscoder), less)}, "list of setups"),
        ({"setups": effects.latent_setups(TwoModels.of(case.crosscoder), renamed)}, "list of setups"),
        ({"setups": setups[:1]}, "list of setups"),
        ({"size": 3}, "batch_size"),
    ):
        with pytest.raises(ValueError, match=f"written by a causal experiment with another {what}, so it cannot"):
            run(**change)
    with pytest.raises(ValueError, match="is not a checkpoint of a diagnosis, but of a causal experiment"):
        slc.diagnose(case.crosscoder, slc.EvalData(pair=case.pair, tokens=tokens), checkpoint_path=path)
    assert path.read_bytes() == before
    run()
    assert not path.exists()
