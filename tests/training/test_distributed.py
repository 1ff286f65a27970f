"""Several processes train the crosscoder that one would have trained, in every layout."""

import pytest
import torch

from tests.training.processes import grid, new_trainer, on_processes, whole_weights

STEPS = 40
LAYOUTS = {4: (1, 2, 4), 2: (1, 2)}


def _train_everything(layouts):
    """History and weights after training, by kind and columns."""
    results = {}
    for n_latents in layouts:
        for kind, fields in RUNS.items():
            trainer = new_trainer(kind.split()[0], grid(n_latents), STEPS, **fields)
            trainer.fit()
            metadata = trainer.sae.cfg.metadata
            found = trainer.history, (metadata.l0, metadata.num_dead_features), whole_weights(trainer)
            results[kind, n_latents] = found
    return results


RUNS = {
    "l1": {},
    "batchtopk": {},
    "batchtopk scaled": {"activation_scaling": "per_model", "score": "max", "screening": "bfloat16"},
}


@pytest.fixture(scope="module", params=[2, 4])
def trained(request, tmp_path_factory):
    n = request.param
    return _train_everything([1]), on_processes(n, _train_everything, tmp_path_factory.mktemp("run"), LAYOUTS[n])


def test_every_layout_gives_the_weights_of_one_process(trained):
    alone, everyones = trained
    for (kind, n_latents), (_, _, weights) in everyones[0].items():
        expected = alone[kind, 1][2]
        for name, value in weights.items():
            torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-9, msg=f"{kind}, {n_latents}: {name}")
