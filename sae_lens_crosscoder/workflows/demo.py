"""Train, diagnose and compare an L1 and a BatchTopK crosscoder on the built-in pair."""

import json
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from sae_lens_crosscoder.activations.contrast_rows import contrast_rows
from sae_lens_crosscoder.analysis.contrasts.concepts import concepts
from sae_lens_crosscoder.analysis.diagnosis.diagnose import diagnose
from sae_lens_crosscoder.analysis.diagnosis.diagnosis import Diagnosis
from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.crosscoders.batchtopk_config import BatchTopKCrosscoderTrainingConfig
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder
from sae_lens_crosscoder.crosscoders.l1 import L1CrosscoderTrainingConfig
from sae_lens_crosscoder.data.tiny_contrasts import tiny_contrasts
from sae_lens_crosscoder.models.tiny import (
    TINY_CONTEXT_SIZE,
    TINY_DATASET,
    TINY_HOOK,
)
from sae_lens_crosscoder.report import write_report
from sae_lens_crosscoder.storage.atomic import write_text_atomically
from sae_lens_crosscoder.storage.field_types import validate_config, validate_minimums
from sae_lens_crosscoder.storage.versions import package_versions
from sae_lens_crosscoder.training.runner import CrosscoderTrainingRunner
from sae_lens_crosscoder.training.runner_config import CrosscoderRunnerConfig

D_MODEL = 96
SUMMARY_FILENAME = "summary.json"
REPORT_FILENAME = "report.html"
_CONCEPT_COLUMNS = (
    *("kind_of_change", "latent", "share", "coverage", "delta_contrast", "auroc", "on_positive", "on_negative"),
    *("delta_norm", "nu_error", "nu_reconstruction", "probe", "verdict"),
)


@dataclass
class DemoConfig:
    """Settings of the demo; the defaults take under five minutes on two cores."""

    output_path: str = "demo"
    """Folder for summary.json, report.html and one crosscoder folder each in l1/ and batchtopk/."""
    d_sae: int = 1536
    """Latents of each crosscoder."""
    training_steps: int = 2500
    """Steps of each crosscoder."""
    batch_size: int = 512
    """Tokens per step."""
    seed: int = 0
    """Seed of the weights, the data and the samples."""

    def __post_init__(self) -> None:
        validate_config(self)
        validate_minimums(self, d_sae=1, training_steps=1, batch_size=1)


@dataclass(frozen=True)
class DemoResult:
    """The results of the demo."""

    diagnoses: dict[str, Diagnosis]
    comparison: pd.DataFrame
    concepts: pd.DataFrame
    summary: dict[str, Any]
    output_path: Path


def demo_runner_config(cfg: DemoConfig) -> CrosscoderRunnerConfig:
    """Configure an L1 and a BatchTopK crosscoder on one stream of the built-in pair's activations."""
    steps = cfg.training_steps
    return CrosscoderRunnerConfig(
        saes={
            "l1": L1CrosscoderTrainingConfig(
                d_model=D_MODEL,
                d_sae=cfg.d_sae,
                l1_coefficient=0.2,
                l1_warm_up_steps=steps // 5,
                decoder_init_norm=0.3,
                gradient_clip_norm=1.0,
            ),
            "batchtopk": BatchTopKCrosscoderTrainingConfig(
                d_model=D_MODEL, d_sae=cfg.d_sae, k=8, topk_threshold_lr=0.01
            ),
        },
        model_name="tiny-base",
        chat_model_name="tiny-chat",
        hook_name=TINY_HOOK,
        dataset_path=TINY_DATASET,
        context_size=TINY_CONTEXT_SIZE,
        training_tokens=steps * cfg.batch_size,
        train_batch_size_tokens=cfg.batch_size,
        store_batch_size_prompts=64,
        n_held_out_rows=1024,
        lr=2e-3,
        lr_warm_up_steps=steps // 20,
        lr_decay_steps=steps // 5,
        dead_feature_window=max(1, steps // 10),
        checkpoint_path=None,
        output_path=cfg.output_path,
        seed=cfg.seed,
    )


@validate_arguments
def run_demo(cfg: DemoConfig) -> DemoResult:
    """Train both crosscoders, diagnose them on held-out tokens, and write summary.json and report.html."""
    output_path = Path(cfg.output_path)
    output_path.mkdir(parents=True, exist_ok=True)  # fails before training
    started = time.perf_counter()
    runner = CrosscoderTrainingRunner(demo_runner_config(cfg))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="All samples in the training dataset have been exhausted")
        crosscoders: dict[str, InferenceCrosscoder] = runner.run()
    seconds = time.perf_counter() - started
    data = runner.held_out_data().keep_activations(TINY_HOOK)
    diagnoses = {name: diagnose(crosscoder, data) for name, crosscoder in crosscoders.items()}
    for name, diagnosis in diagnoses.items():
        diagnosis.save(output_path / name)
    contrasts = tiny_contrasts(n_pairs=256, seed=cfg.seed)
    rows = [contrast_rows(runner.pair, contrast, TINY_HOOK) for contrast in contrasts]
    carriers = pd.concat(
        {
            name: concepts(crosscoders[name], None, rows, diagnosis.latents).table[[*_CONCEPT_COLUMNS]]
            for name, diagnosis in diagnoses.items()
        },
        names=["crosscoder"],
    ).swaplevel()
    carriers = carriers.loc[[contrast.name for contrast in contrasts]]
    comparison = compare_diagnoses(diagnoses)
    summary = _summary(diagnoses, seconds)
    write_text_atomically(json.dumps(summary, indent=1), output_path / SUMMARY_FILENAME)
    write_report(
        diagnoses,
        output_path / REPORT_FILENAME,
        comparison,
        carriers.reset_index(),
        title="What chat tuning changed in the built-in tiny pair",
        notes=[
            f"Both crosscoders trained on the same {cfg.training_steps * cfg.batch_size:,} tokens in {seconds:.0f} s."
        ],
    )
    return DemoResult(diagnoses, comparison, carriers, summary, output_path)


def compare_diagnoses(diagnoses: dict[str, Diagnosis]) -> pd.DataFrame:
    """Tabulate crosscoders side by side as text: classes with and without dead latents, genuine share, FVE, L0."""
    return pd.DataFrame({name: _column(diagnosis) for name, diagnosis in diagnoses.items()})


def _count(n_all: int, n_alive: int) -> str:
    return f"{n_all:,} ({n_alive:,})" if n_all else "none"


def _column(diagnosis: Diagnosis) -> dict[str, str]:
    table, manifest = diagnosis.latents, diagnosis.manifest
    alive = table[~table.dead]
    column = {
        f"{name} (without dead)": _count(int((table.label == name).sum()), int((alive.label == name).sum()))
        for name in ("base_only", "shared", "chat_only", "other")
    }
    judged = alive[(alive.label == "chat_only") & ~alive.verdict.isin(["rare", "negligible", "undetermined"])]
    genuine = int((judged.verdict == "chat_specific").sum())
    column["chat_only that is genuine"] = f"{genuine} of {len(judged)} judged" if len(judged) else "none to judge"
    for artifact in ("complete_shrinkage", "latent_decoupling", "rotated"):
        column[f"chat_only by {artifact}"] = str(int((judged.verdict == artifact).sum())) if len(judged) else "none"
    column["dead on held-out tokens"] = f"{table.dead.sum():,}"
    column |= {f"FVE {model}": f"{value:.3f}" for model, value in manifest["fve"].items()}
    column["L0"] = f"{manifest['l0']:.1f}"
    return column


def _summary(diagnoses: dict[str, Diagnosis], seconds: float) -> dict[str, Any]:
    crosscoders = {
        name: {
            "architecture": diagnosis.manifest["architecture"],
            "fve_base": diagnosis.manifest["fve"]["base"],
            "fve_chat": diagnosis.manifest["fve"]["chat"],
            "l0": diagnosis.manifest["l0"],
            "labels": {str(label): int(n) for label, n in diagnosis.latents.label.value_counts().items()},
            "verdicts": {str(verdict): int(n) for verdict, n in diagnosis.latents.verdict.value_counts().items()},
            "n_dead": int(diagnosis.latents.dead.sum()),
            "conclusion": diagnosis.conclusion,
            "seconds": seconds,
        }
        for name, diagnosis in diagnoses.items()
    }
    return {"crosscoders": crosscoders, "versions": package_versions()}
