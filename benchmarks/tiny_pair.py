"""Trains crosscoders and baselines on the built-in pair: which find its known differences, and after how long.

python benchmarks/tiny_pair.py --suite score --seeds 0 1 2 --output benchmarks/results/tiny_pair.json
python benchmarks/tiny_pair.py --suite carriers --seeds 0 1 2 --output benchmarks/results/tiny_pair_carriers.json
python benchmarks/tiny_pair.py --suite convergence --seeds 0 --output benchmarks/results/tiny_pair_convergence.json
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import pandas as pd
import torch
from results_file import write_results
from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, SAETrainer

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.activations import contrast_rows, harvest
from sae_lens_crosscoder.analysis.contrasts.auroc import auroc
from sae_lens_crosscoder.analysis.contrasts.concepts import concepts
from sae_lens_crosscoder.analysis.contrasts.shares import shares
from sae_lens_crosscoder.data import tiny_contrasts
from sae_lens_crosscoder.models.tiny import TINY_HOOK, oracle_table, tiny_dataset
from sae_lens_crosscoder.synthetic import shuffled_batches
from sae_lens_crosscoder.workflows.demo import D_MODEL, DemoConfig, demo_runner_config

BATCH, STEPS, D_SAE, K = DemoConfig.batch_size, DemoConfig.training_steps, DemoConfig.d_sae, 8
POOL_ROWS, HELD_OUT_ROWS, N_PAIRS = 20_000, 1024, 256
JITTER = 0.02
CONTRASTS = tiny_contrasts(N_PAIRS, seed=1)


class Data:
    """One pair of models, with activations for training and tokens for diagnosis, harvested once for all runs."""

    def __init__(self, chat: str) -> None:
        self.pair = slc.HookedModelPair.from_pretrained("tiny-base", chat)
        rows = torch.tensor(tiny_dataset(POOL_ROWS + HELD_OUT_ROWS, seed=0)["input_ids"])
        self.held_out = rows[:HELD_OUT_ROWS]
        self.contrasts = [contrast_rows(self.pair, contrast, TINY_HOOK) for contrast in CONTRASTS]
        self.pool = torch.cat(list(harvest(self.pair, rows[HELD_OUT_ROWS:], TINY_HOOK, batch_size=256)))

    def batches(self, seed: int) -> Iterator[torch.Tensor]:
        return shuffled_batches(self.pool, BATCH, seed)


def trainer_config(steps: int) -> slc.CrosscoderTrainerConfig:
    """Return the demo's schedule for another number of steps."""
    return demo_runner_config(DemoConfig(training_steps=steps)).to_sae_trainer_config()


def train(cfg: Any, data: Data, seed: int, steps: int = STEPS) -> slc.crosscoders.InferenceCrosscoder:
    """Train a crosscoder of the demo's kind, and load it as a user would."""
    torch.manual_seed(seed)
    architecture = {
        "crosscoder": slc.L1TrainingCrosscoder,
        "batchtopk_crosscoder": slc.BatchTopKTrainingCrosscoder,
    }[cfg.architecture()]
    crosscoder = architecture(cfg)
    slc.CrosscoderTrainer(trainer_config(steps), crosscoder, data.batches(seed)).fit()
    with tempfile.TemporaryDirectory() as folder:
        crosscoder.save_inference_model(folder)
        trained = slc.load(folder)
    metadata = trained.cfg.metadata
    metadata.model_name, metadata.chat_model_name = data.pair.model_names
    metadata.hook_name = TINY_HOOK
    return trained


def crosscoder_configs(steps: int = STEPS, **batchtopk: Any) -> dict[str, Any]:
    """Return the configs of the demo's two crosscoders."""
    configs = demo_runner_config(DemoConfig(training_steps=steps, d_sae=batchtopk.pop("d_sae", D_SAE))).saes
    assert configs is not None
    for name, value in batchtopk.items():
        setattr(configs["batchtopk"], name, value)
    return dict(configs)


def rows_of(
    name: str, seed: int, crosscoder: Any, diagnosis: slc.Diagnosis, data: Data, oracle: pd.Series
) -> list[dict]:
    """Build a row per concept, with the figures of the whole crosscoder beside it."""
    table, manifest = diagnosis.latents, diagnosis.manifest
    carriers = concepts(crosscoder, None, data.contrasts, table).table
    found = carriers.join(oracle)
    found["delta_contrast_of_oracle"] = ((1 - found.oracle) / found.oracle.clip(lower=1) + 1) / 2
    scores = {s: found[s].rank().corr(found.oracle.rank()) for s in ("delta_norm", "nu_error", "nu_free")}
    live = table[~table.dead]
    whole = {
        "crosscoder": name,
        "seed": seed,
        "d_sae": crosscoder.cfg.d_sae,
        "fve_pooled": manifest["fve"]["pooled"],
        "l0": manifest["l0"],
        "conclusion": diagnosis.conclusion,
        **{f"n_{verdict}": int((live.verdict == verdict).sum()) for verdict in ("chat_specific", "base_specific")},
        **{f"n_{label}": int((live.label == label).sum()) for label in ("chat_only", "base_only")},
        **{f"spearman_{score}": value for score, value in scores.items()},
    }
    return [{**whole, "concept": concept, **row.dropna().to_dict()} for concept, row in found.iterrows()]


def baseline_rows(data: Data, seed: int) -> list[dict[str, Any]]:
    """Train simpler methods on the same tokens, and build a row for the unit of each that carries a concept."""
    difference = difference_of(data.pool)
    centre = difference.mean(dim=0)
    components = torch.linalg.svd(difference[:100_000] - centre, full_matrices=False).Vh
    stack_sae, difference_sae = (train_sae(pool, seed) for pool in (data.pool, difference))
    methods: dict[str, tuple[Any, torch.Tensor, Any]] = {
        "SAE on the stack": (stack_sae.encode, stack_sae.W_dec, lambda x: x),
        "SAE on the difference": (difference_sae.encode, difference_sae.W_dec, difference_of),
        "PCA of the difference": (lambda d: (d - centre) @ components.T, components, difference_of),
    }
    rows: list[dict[str, Any]] = []
    for name, (encode, directions, target_of) in methods.items():
        for contrast in data.contrasts:
            (on, off), (held_on, held_off) = (map(target_of, contrast.part(held)) for held in (False, True))
            with torch.no_grad():
                unit = int(unit_shares(encode, directions, on, off).argmax())
                area = auroc(encode(held_on)[:, [unit]], encode(held_off)[:, [unit]]).item()
                share = unit_shares(encode, directions, held_on, held_off)[unit].item()
            row = {"crosscoder": name, "seed": seed, "concept": contrast.name, "latent": unit}
            rows.append({**row, "share": share, "auroc": max(area, 1 - area)})
    return rows


def unit_shares(encode: Any, directions: torch.Tensor, on: torch.Tensor, off: torch.Tensor) -> torch.Tensor:
    return shares(encode(on).mean(dim=0) - encode(off).mean(dim=0), directions, on.mean(dim=0) - off.mean(dim=0))


def difference_of(stacked: torch.Tensor) -> torch.Tensor:
    base, chat = stacked.split(D_MODEL, dim=-1)
    return chat - base


def train_sae(pool: torch.Tensor, seed: int) -> BatchTopKTrainingSAE:
    """Train SAELens's BatchTopK SAE with the crosscoder's width, sparsity and number of steps."""
    torch.manual_seed(seed)
    sae = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(d_in=pool.shape[-1], d_sae=D_SAE, k=K))
    SAETrainer(cfg=trainer_config(STEPS), sae=sae, data_provider=shuffled_batches(pool, BATCH, seed)).fit()
    return sae


def score(seeds: list[int]) -> Iterator[dict[str, Any]]:
    """Run both crosscoders on the pair, with null runs, and simpler methods."""
    pairs = {name: Data(name) for name in ("tiny-chat", "tiny-null", f"tiny-base+jitter={JITTER}")}
    oracles = {name: oracle_of(data) for name, data in pairs.items()}
    for seed in seeds:
        for name, cfg in crosscoder_configs().items():
            started = time.process_time()
            nulls: dict[str, slc.Diagnosis] = {}
            # From the least different pair upwards: each uses the null runs before it.
            for chat in reversed(pairs):
                data = pairs[chat]
                crosscoder = train(cfg, data, seed)
                held_out = slc.EvalData(pair=data.pair, tokens=data.held_out)
                null = list(nulls.values())
                nulls[chat] = slc.diagnose(crosscoder, held_out, null=null, free_directions="all")
                for row in rows_of(name, seed, crosscoder, nulls[chat], data, oracles[chat]):
                    yield {"chat": chat, **row, "cpu_seconds": time.process_time() - started}
        for row in baseline_rows(pairs["tiny-chat"], seed):
            yield {"chat": "tiny-chat", **row}


def carriers(seeds: list[int]) -> Iterator[dict[str, Any]]:
    """Run BatchTopK on the pair and on its null pair, which gives the null runs."""
    pairs = {name: Data(name) for name in ("tiny-null", "tiny-chat")}
    oracles = {name: oracle_of(data) for name, data in pairs.items()}
    cfg = crosscoder_configs()["batchtopk"]
    for seed in seeds:
        nulls: list[slc.Diagnosis] = []
        for chat, data in pairs.items():
            crosscoder = train(cfg, data, seed)
            nulls.append(slc.diagnose(crosscoder, slc.EvalData(pair=data.pair, tokens=data.held_out), null=nulls[:]))
            for row in rows_of("batchtopk", seed, crosscoder, nulls[-1], data, oracles[chat]):
                yield {"chat": chat, **row}


def convergence(seeds: list[int]) -> Iterator[dict[str, Any]]:
    """Train BatchTopK longer, wider, sparser, and with other scores, one change at a time."""
    data = Data("tiny-chat")
    oracle = oracle_of(data)
    variations: list[tuple[str, int, dict[str, Any]]] = [("default", STEPS, {})]
    variations += [("steps", steps, {}) for steps in (500, 1000, 5000, 10_000)]
    variations += [("d_sae", STEPS, {"d_sae": d_sae}) for d_sae in (192, 384, 768, 3072)]
    variations += [("k", STEPS, {"k": k}) for k in (4, 16, 32)]
    variations += [("score", STEPS, {"score": score}) for score in ("max", "l2")]
    for seed in seeds:
        for varied, steps, fields in variations:
            cfg = crosscoder_configs(steps, **fields)["batchtopk"]
            crosscoder = train(cfg, data, seed, steps)
            diagnosis = slc.diagnose(crosscoder, slc.EvalData(pair=data.pair, tokens=data.held_out))
            for row in rows_of("batchtopk", seed, crosscoder, diagnosis, data, oracle):
                yield {"varied": varied, "steps": steps, "k": cfg.k, "score": cfg.score, **row}


def oracle_of(data: Data) -> pd.Series:
    return oracle_table(data.pair.base, data.pair.chat, TINY_HOOK, n_pairs=500, seed=2)["oracle"]


SUITES = {"score": score, "carriers": carriers, "convergence": convergence}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--suite", choices=sorted(SUITES), default="score")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--output", required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for row in SUITES[args.suite](args.seeds):
        rows.append(row)
        print({name: round(v, 3) if isinstance(v, float) else v for name, v in row.items()}, flush=True)
        write_results(args.output, rows, batch=BATCH, default_steps=STEPS, n_pairs=N_PAIRS)


if __name__ == "__main__":
    main()
