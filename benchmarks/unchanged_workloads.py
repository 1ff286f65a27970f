"""What no_worse.py runs in a process per checkout: the workloads of the other benchmarks, through public names only."""

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from patching import Experiment
from polish_cost import NOISE
from step_peers import Size, activations, endless
from training_step import SIZES, our_trainer
from wait_workloads import diagnose, harvest, harvest_equal, random_crosscoder

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.activations.shuffle_buffer import mixed_batches
from sae_lens_crosscoder.models.tiny import TINY_CONTEXT_SIZE, TINY_HOOK, tiny_dataset
from sae_lens_crosscoder.synthetic import score_card, shuffled_batches, truth_table, world_a

Run = Callable[[], Any]
N_STEPS = 8
POLISHED = Size(96, 1536, 8, 512)


def _steps(trainer: Any, n_steps: int) -> Run:
    stream = trainer.data_provider

    def run() -> None:
        for batch in islice(stream, n_steps):
            trainer.step(batch)
            trainer.n_training_steps += 1

    run()
    return run


def step(size: Size, screening: str) -> Run:
    """Steps of a BatchTopK crosscoder, past its first ones."""
    return _steps(our_trainer(size, activations(size), screening=screening), max(N_STEPS, 2048 * 20 // size.d_sae))


def other_step(size: Size, crosscoder: Any) -> Run:
    """Steps of another architecture."""
    cfg = slc.CrosscoderTrainerConfig(
        total_training_samples=10**9, train_batch_size_samples=size.batch, lr=1e-3, lr_warm_up_steps=10
    )
    return _steps(slc.CrosscoderTrainer(cfg, crosscoder, endless(activations(size))), N_STEPS)


def l1_step() -> Run:
    size = Size(128, 2048, 16, 512)
    torch.manual_seed(0)
    cfg = slc.L1CrosscoderTrainingConfig(d_model=size.d_model, d_sae=size.d_sae, l1_coefficient=0.1)
    return other_step(size, slc.L1TrainingCrosscoder(cfg))


def buffer() -> Run:
    chunks = list(torch.randn(65_536, 512).split(4096)) * 3
    return lambda: sum(len(batch) for batch in mixed_batches(chunks, batch_size=2048, buffer_size=65_536))


def cache() -> Run:
    """Write a cache of the built-in pair, and read two shuffled passes with checksums."""
    pair = slc.HookedModelPair.from_pretrained("tiny-base", "tiny-chat")
    tokens = torch.randint(0, 200, (512, TINY_CONTEXT_SIZE), generator=torch.Generator().manual_seed(0))

    def run() -> None:
        with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
            cached = slc.cache_activations(folder, pair, tokens, TINY_HOOK)
            assert sum(1 for _ in cached.shuffled(512, n_passes=2)) > 0
            shutil.rmtree(folder, ignore_errors=True)
            Path(folder).mkdir()

    return run


def scaling() -> Run:
    """Latent Scaling of all of 2,048 latents, encoding included."""
    crosscoder, x = random_crosscoder(2048), torch.randn(2048, 128)

    def run() -> None:
        with torch.no_grad():
            sums, code = slc.analysis.LatentScaling(crosscoder), crosscoder.encode_sparse(x)
            sums.add(x, code, crosscoder.decode(code))

    return run


def patching(share_prefix: bool) -> Run:
    return partial(Experiment().ours, share_prefix)


def polish() -> Run:
    """A round of polish on tokens that are sums of decoder directions."""
    torch.manual_seed(0)
    cfg = slc.BatchTopKCrosscoderTrainingConfig(d_model=POLISHED.d_model, d_sae=POLISHED.d_sae, k=POLISHED.k)
    crosscoder = slc.BatchTopKTrainingCrosscoder(cfg)
    units = torch.nn.functional.normalize(torch.randn(POLISHED.d_sae, 2 * POLISHED.d_model), dim=1)
    latents = torch.randint(POLISHED.d_sae, (6144, POLISHED.k))
    x = sum((0.5 + torch.rand(len(latents), 1)) * units[latents[:, slot]] for slot in range(POLISHED.k))
    x = x + NOISE * torch.randn(len(latents), 2 * POLISHED.d_model)
    settings = slc.training.PolishConfig(lr=1e-4, n_rounds=1, n_tokens_per_round=len(x))

    def batches() -> Iterator[torch.Tensor]:
        while True:
            yield from x.split(512)

    trainer_cfg = slc.CrosscoderTrainerConfig(
        total_training_samples=4 * 512, train_batch_size_samples=512, lr=1e-4, lr_warm_up_steps=0
    )
    slc.CrosscoderTrainer(trainer_cfg, crosscoder, batches()).fit()
    return lambda: slc.training.polish(crosscoder, batches(), settings)


def whole_training() -> Run:
    """The runner on the built-in pair, harvesting included."""
    pair = slc.HookedModelPair.from_pretrained("tiny-base", "tiny-chat")
    rows = tiny_dataset(60 * 512 // TINY_CONTEXT_SIZE, seed=0)
    cfg = slc.CrosscoderRunnerConfig(
        sae=slc.BatchTopKCrosscoderTrainingConfig(d_model=96, d_sae=512, k=8),
        hook_name=TINY_HOOK,
        context_size=TINY_CONTEXT_SIZE,
        train_batch_size_tokens=512,
        n_batches_in_buffer=16 * 512 // TINY_CONTEXT_SIZE,
        training_tokens=30 * 512,
        lr=1e-3,
        lr_warm_up_steps=0,
        checkpoint_path=None,
        output_path=None,
        verbose=False,
        n_held_out_rows=1,
    )
    return lambda: slc.CrosscoderTrainingRunner(cfg, rows, pair).run()


def planted(architecture: str) -> Run:
    """Train in a planted world and diagnose; the figures of the card."""
    world = world_a(seed=0)
    widths: dict[str, Any] = {"d_models": world.layout.d_models, "d_sae": 256}

    def run() -> dict[str, float]:
        torch.manual_seed(0)
        if architecture == "L1":
            cfg: Any = slc.L1CrosscoderTrainingConfig(**widths, l1_coefficient=0.1, decoder_init_norm=0.3)
            crosscoder: Any = slc.L1TrainingCrosscoder(cfg)
        else:
            cfg = slc.BatchTopKCrosscoderTrainingConfig(
                **widths, k=world.l0, topk_threshold_lr=0.01, decoder_bias_init="zeros"
            )
            crosscoder = slc.BatchTopKTrainingCrosscoder(cfg)
        batches = shuffled_batches(world.sample(40_000, seed=1000).activations, 512, 0)
        steps = 3000
        trainer_cfg = slc.CrosscoderTrainerConfig(
            total_training_samples=steps * 512,
            train_batch_size_samples=512,
            lr=5e-3 if architecture != "L1" else 2e-3,
            lr_warm_up_steps=90,
            lr_decay_steps=steps // 5,
        )
        slc.CrosscoderTrainer(trainer_cfg, crosscoder, batches).fit()
        with tempfile.TemporaryDirectory() as folder:
            crosscoder.save_inference_model(folder)
            loaded = slc.load(folder)
        tokens = world.sample(40_000, seed=2000)
        table = slc.diagnose(loaded, slc.EvalData(activations=tokens.activations)).latents
        card = score_card(world, truth_table(world, loaded, tokens), table)
        with torch.no_grad():
            error = (loaded(tokens.activations) - tokens.activations).square().sum()
        spread = (tokens.activations - tokens.activations.mean(dim=0)).square().sum()
        return {
            "fve": 1 - float(error / spread),
            "precision of chat-specific": card.chat_verdict.precision,
            "recall of chat-specific": card.chat_verdict.recall,
        }

    return run


SPEED: dict[str, Callable[[], Run]] = {
    **{
        f"{name}, {screening}": partial(step, size, screening)
        for name, size in SIZES.items()
        if name.startswith("step")
        for screening in ("float32", "bfloat16")
    },
    "step/L1": l1_step,
    "train/end_to_end tiny pair": whole_training,
    "harvest": lambda: harvest()[0],
    "harvest/equal": lambda: harvest_equal()[0],
    "buffer/64k": buffer,
    "cache/bf16": cache,
    "scaling/all": scaling,
    "diagnose, 4,096 latents": lambda: diagnose(4096)[0],
    "patch/L6of12": partial(patching, False),
    "patch/L6of12/shared_prefix": partial(patching, True),
    "polish_cost, built-in pair": polish,
}
QUALITY: dict[str, Callable[[], Run]] = {
    "planted, BatchTopK": partial(planted, "BatchTopK"),
    "planted, L1": partial(planted, "L1"),
}


def answer_requests() -> None:
    """Read names of workloads from standard input; answer with CPU milliseconds, or a planted world's figures."""
    torch.set_num_threads(1)
    ready: dict[str, Run] = {}
    for line in sys.stdin:
        name = line.strip()
        if name in QUALITY:
            answer: Any = QUALITY[name]()()
        else:
            if name not in ready:
                ready.clear()  # frees what the last one holds
                ready[name] = SPEED[name]()
                ready[name]()
            cpu = time.process_time()
            ready[name]()
            answer = (time.process_time() - cpu) * 1e3
        print(RESULT + json.dumps(answer), flush=True)


RESULT = "RESULT "

if __name__ == "__main__":
    answer_requests()
