"""SAELens's own configs and runners on the built-in pair, as small as they go."""

import pytest
from datasets import Dataset
from sae_lens import LanguageModelSAERunnerConfig, LoggingConfig

import sae_lens_crosscoder as slc
from tests.models.small_models import some_tokens

D_MODEL, D_SAE, K, HOOK = 96, 64, 4, "blocks.1.hook_resid_post"
CONTEXT, BATCH, STEPS = 16, 64, 12


def training_config(architecture, **fields):
    if architecture == "batchtopk_crosscoder":
        return slc.BatchTopKCrosscoderTrainingConfig(**{"d_model": D_MODEL, "d_sae": D_SAE, "k": K} | fields)
    fields = {"d_model": D_MODEL, "d_sae": D_SAE, "l1_coefficient": 0.1} | fields
    return slc.L1CrosscoderTrainingConfig(**fields)


def settings(**fields):
    """What all of SAELens's runner configs share."""
    return (
        dict(
            model_name="tiny-base",
            context_size=CONTEXT,
            training_tokens=STEPS * BATCH,
            train_batch_size_tokens=BATCH,
            n_batches_in_buffer=8,
            store_batch_size_prompts=4,
            lr=1e-3,
            dead_feature_window=1000,
            n_eval_batches=1,
            eval_batch_size_prompts=4,
            logger=LoggingConfig(log_to_wandb=False),
            checkpoint_path=None,
            output_path=None,
        )
        | fields
    )


def host_config(architecture="batchtopk_crosscoder", sae=None, **fields):
    sae = sae or training_config(architecture)
    return LanguageModelSAERunnerConfig(sae=sae, **settings(**{"hook_name": HOOK, "verbose": False} | fields))


@pytest.fixture(scope="session")
def pair():
    return slc.HookedModelPair.from_pretrained("tiny-base", "tiny-chat")


@pytest.fixture(scope="session")
def rows():
    tokens = some_tokens(n_prompts=300, n_pos=CONTEXT, d_vocab=200, seed=4)
    return Dataset.from_dict({"input_ids": tokens.tolist()})
