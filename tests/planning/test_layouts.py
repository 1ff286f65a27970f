"""What a plan says that each of several processes sends and holds, against what they do."""

import re

import pytest
import torch.distributed as dist

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.planning.scaling import n_collectives, step_traffic
from sae_lens_crosscoder.training.distributed.latent_shards import part_of
from sae_lens_crosscoder.training.distributed.process_group import ProcessGrid
from tests.planning.test_plan import config, planned
from tests.training.processes import BATCH, activations, grid, new_trainer, on_processes

K = 2.5
WIDE = slc.BatchTopKCrosscoderTrainingConfig(d_model=96, d_sae=65_536, k=8, aux_loss_coefficient=0.0)


def _sent_in_a_step(n_latents):
    """Bytes by ring algorithms, counted where things are exchanged, in the second of two steps."""
    trainer = new_trainer("batchtopk", grid(n_latents), 5)
    sent = []

    def counted(exchange, share):
        def count(*args, group=None, **kwargs):
            size = dist.get_world_size(group)
            sent.append(share(args) * (size - 1) / size)
            return exchange(*args, group=group, **kwargs)

        return count

    def counted_sum(self, part):
        sent.append(2 * part.nbytes * (n_latents - 1) / n_latents)
        return sum_of_parts(self, part)

    sum_of_parts = ProcessGrid.sum_of_parts
    ProcessGrid.sum_of_parts = counted_sum
    dist.all_reduce = counted(dist.all_reduce, lambda args: 2 * args[0].nbytes)
    dist.all_gather = counted(dist.all_gather, lambda args: sum(part.nbytes for part in args[0]))
    for batch in activations(trainer.ranks, 2, "float64"):
        sent.clear()
        trainer.step(trainer.ranks.gathered(batch, "latents"))
    return sum(sent)


@pytest.mark.parametrize("n_latents", [1, 2, 4])
def test_what_is_sent_in_a_step_is_about_what_is_planned(tmp_path, n_latents):
    sae = slc.BatchTopKCrosscoderTrainingConfig(d_models=(4, 4), d_sae=32, k=K, dtype="float64")
    planned_bytes = step_traffic(sae, BATCH, 4 // n_latents, n_latents)
    found = on_processes(4, _sent_in_a_step, tmp_path, n_latents)[0]
    # The rest is scalars, and scores beyond those that are kept: much, in so small a step.
    assert planned_bytes * 0.85 <= found <= planned_bytes * 1.25


def _collectives_in_a_step(n_latents):
    """Counted where things are exchanged, in runs without dead latents; all but those of searches for largest scores.

    A search makes two, and is made again whenever a bound was too high. Beginning, end and logging are left out.
    """
    exchanges, searches = [], []

    def counted(function, calls):
        def count(*args, **kwargs):
            calls.append(None)
            return function(*args, **kwargs)

        return count

    def made(kind, steps, **fields):
        exchanges.clear(), searches.clear()
        new_trainer(kind, grid(n_latents), steps, **fields).fit()
        return len(exchanges) - 2 * len(searches)

    dist.all_reduce, dist.all_gather = counted(dist.all_reduce, exchanges), counted(dist.all_gather, exchanges)
    ProcessGrid.largest = counted(ProcessGrid.largest, searches)
    if n_latents > 1:
        ProcessGrid.sum_of_parts = counted(ProcessGrid.sum_of_parts, exchanges)
    kinds = {"l1": {}, "batchtopk": {"aux_loss_coefficient": 0.0}}
    # Both lengths write two rows of metrics.
    return {kind: (made(kind, 10, **fields) - made(kind, 6, **fields)) / 4 for kind, fields in kinds.items()}


@pytest.mark.parametrize("n_latents", [1, 2, 4])
def test_a_step_makes_as_many_exchanges_as_planned(tmp_path, n_latents):
    found = on_processes(4, _collectives_in_a_step, tmp_path, n_latents)[0]
    l1 = slc.L1CrosscoderTrainingConfig(d_models=(4, 4), d_sae=32)
    batchtopk = slc.BatchTopKCrosscoderTrainingConfig(d_models=(4, 4), d_sae=32, k=K)
    assert found["l1"] == n_collectives(l1, 4 // n_latents, n_latents)
    assert found["batchtopk"] + 2 == n_collectives(batchtopk, 4 // n_latents, n_latents)


def test_each_process_holds_its_part_of_weights_gradients_and_moments():
    cfg = config(sae=WIDE)
    layouts = planned(cfg, processes=4).layouts
    assert [(layout.n_data, layout.n_latents) for layout in layouts] == [(4, 1), (2, 2), (1, 4)]
    whole = slc.BatchTopKTrainingCrosscoder(WIDE)
    states = [4 * sum(w.nbytes for w in part_of(whole, 0, n).parameters()) for n in (1, 2, 4)]
    needed = [layout.n_bytes_needed["cpu"] for layout in layouts]
    for n in (1, 2):  # beside which little else depends on the layout
        assert 1 <= (needed[0] - needed[n]) / (states[0] - states[n]) <= 1.3


def test_active_pairs_are_divided_as_the_latents_are():
    sae = slc.BatchTopKCrosscoderTrainingConfig(d_model=4, d_sae=1024, k=256, aux_loss_coefficient=0.0)
    cfg = config(sae=sae, hook_name="blocks.2.hook_mlp_out", train_batch_size_tokens=8192, training_tokens=2**16)
    needed = [layout.n_bytes_needed["cpu"] for layout in planned(cfg, processes=8).layouts]
    assert max(needed) < 1.5 * min(needed)


def test_a_plan_says_which_layout_fits():
    cfg = config(sae=WIDE)
    enough = planned(cfg, processes=2).layouts[1].n_bytes_needed["cpu"] / 2**30 / 0.9 + 0.001
    plan = planned(cfg, processes=2, memory_gib=enough)
    assert [layout.fits for layout in plan.layouts] == [False, True]
    first, second = (re.search(rf"^ +{n}  .*", str(plan), flags=re.M)[0] for n in (1, 2))
    assert first.endswith("  does not fit")
    assert not second.endswith("fit")
    assert planned(cfg).layouts == ()


def test_a_batch_that_processes_cannot_share_is_refused():
    with pytest.raises(ValueError, match="train_batch_size_tokens=128 cannot be divided evenly among 3"):
        planned(config(), processes=3)
