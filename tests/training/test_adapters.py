"""Laws of a run on an adapter with one copy of the weights: it trains and diagnoses as on the merged pair."""

import pandas as pd
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.models.tiny import TINY_DATASET
from tests.models.adapters import save_adapter, save_base, save_merged

HOOK, STEPS, BATCH = "blocks.3.hook_resid_post", 6, 128


def config(folder, base, chat):
    return slc.CrosscoderRunnerConfig(
        sae=slc.L1CrosscoderTrainingConfig(d_model=32, d_sae=64),
        model_name=base,
        chat_model_name=chat,
        model_class_name="TransformerBridge",
        hook_name=HOOK,
        dataset_path=TINY_DATASET,
        context_size=64,
        training_tokens=STEPS * BATCH,
        train_batch_size_tokens=BATCH,
        store_batch_size_prompts=4,
        n_held_out_rows=8,
        lr=1e-3,
        lr_warm_up_steps=2,
        checkpoint_path=str(folder / "checkpoints"),
        output_path=str(folder / "output"),
    )


def test_a_run_and_its_diagnosis_equal_those_of_the_merged_pair(tmp_path):
    base = save_base(tmp_path / "base")
    adapter = save_adapter(tmp_path / "adapter", base)
    chats = {"shared": f"{base}+adapter={adapter}", "merged": save_merged(tmp_path / "merged", base, adapter)}
    crosscoders, tables = [], []
    for name, chat in chats.items():
        runner = slc.CrosscoderTrainingRunner(config(tmp_path / name, base, chat))
        crosscoders.append(runner.run())
        tables.append(slc.diagnose(crosscoders[-1], runner.held_out_data()).latents)
    assert crosscoders[0].cfg.metadata.chat_model_name == chats["shared"]
    for name, weights in crosscoders[1].state_dict().items():
        torch.testing.assert_close(crosscoders[0].state_dict()[name], weights, rtol=1e-3, atol=1e-5)
    columns = ["delta_norm", "frequency"]
    pd.testing.assert_frame_equal(tables[0][columns], tables[1][columns], rtol=1e-2, atol=1e-3)


def test_a_plan_counts_the_shared_weights_once(tmp_path):
    base = save_base(tmp_path / "base")
    adapter = save_adapter(tmp_path / "adapter", base)
    plans = [slc.planning.plan(config(tmp_path, base, chat)) for chat in (f"{base}+adapter={adapter}", base)]
    weights = [[item.n_bytes for item in plan.memory if item.name.startswith(base)] for plan in plans]
    assert weights == [weights[1][:1], 2 * weights[1][:1]]
