"""Several gloo processes on this machine, forked so that none imports anything again, and what they train on."""

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.crosscoders.collectives import SINGLE_PROCESS
from sae_lens_crosscoder.training.distributed.process_group import ProcessGroup

D_MODELS, D_SAE, BATCH = (4, 4), 32, 48


def on_processes(n, work, folder, *args):
    """What `work(*args)` returns in each of n processes of one group."""
    folder.mkdir(parents=True, exist_ok=True)
    mp.start_processes(_process, args=(n, work, folder, args), nprocs=n, start_method="fork")
    # Tables too; the files are those that were written just now.
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(n)]


def _process(rank, n, work, folder, args):
    dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=n)
    torch.save(work(*args), folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def grid(n_latents):
    """The grid of this process's group; without a group, one process."""
    return ProcessGroup(n_latents, "cpu") if dist.is_initialized() else SINGLE_PROCESS


def activations(collectives, steps, dtype):
    """This process's share of every batch: sparse combinations of more directions than there are dimensions."""
    generator = torch.Generator().manual_seed(7)
    directions = torch.nn.functional.normalize(torch.randn(20, 8, generator=generator, dtype=torch.float64), dim=1)
    for _ in range(steps):
        on = torch.rand(BATCH, 20, generator=generator) < 0.15
        batch = (on * torch.rand(BATCH, 20, generator=generator, dtype=torch.float64)) @ directions
        batch = batch + 0.05 * torch.randn(BATCH, 8, generator=generator, dtype=torch.float64) + 0.3
        yield batch.to(getattr(torch, dtype)).chunk(collectives.n_processes)[collectives.rank]


def new_trainer(kind, collectives, steps, dtype="float64", stream=None, checkpoint_path=None, resume=None, **fields):
    """A trainer of this process's part of a crosscoder that is the same whatever the layout."""
    torch.manual_seed(3)
    fields = {"d_models": D_MODELS, "d_sae": D_SAE, "dtype": dtype, "gradient_clip_norm": 0.3} | fields
    if kind == "l1":
        whole = slc.L1TrainingCrosscoder(slc.L1CrosscoderTrainingConfig(l1_coefficient=0.1, **fields))
    else:
        whole = slc.BatchTopKTrainingCrosscoder(slc.BatchTopKCrosscoderTrainingConfig(k=2.5, **fields))
    cfg = slc.CrosscoderTrainerConfig(
        total_training_samples=steps * BATCH,
        train_batch_size_samples=BATCH,
        lr=1e-2,
        lr_warm_up_steps=3,
        dead_feature_window=2,
        log_frequency=5,
        checkpoint_path=checkpoint_path and str(checkpoint_path),
        resume_from_checkpoint=resume,
        n_batches_for_norm_estimate=2,
    )
    stream = activations(collectives, steps + 2, dtype) if stream is None else stream
    return slc.CrosscoderTrainer(cfg, collectives.shard(whole), stream)


def whole_weights(trainer):
    """The state of the whole crosscoder, on the first process."""
    whole = trainer.collectives.unshard(trainer.sae)
    return None if whole is None else {name: value.clone() for name, value in whole.state_dict().items()}
