"""The kinds of writing of this package, tiny: what each writes twice, over one another, and what is read back."""

import contextlib
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.activations.cache.reader import ActivationCache
from sae_lens_crosscoder.analysis.baselines.directions import DifferenceDirections
from sae_lens_crosscoder.analysis.baselines.linear import difference_pca
from sae_lens_crosscoder.analysis.baselines.rows import difference_rows
from sae_lens_crosscoder.analysis.diagnosis.diagnosis import Diagnosis
from sae_lens_crosscoder.causal.localisation.first_look import FirstLook
from sae_lens_crosscoder.models.tiny import TINY_CONTEXT_SIZE, TINY_DATASET, TINY_HOOK, dialogues, tiny_dataset
from sae_lens_crosscoder.report import Exploration, write_explorer, write_report
from sae_lens_crosscoder.storage import accumulators
from sae_lens_crosscoder.storage.checksums import fingerprint
from sae_lens_crosscoder.training.checkpoints.folder import checkpoints_in, problem_with
from sae_lens_crosscoder.workflows import first_look
from sae_lens_crosscoder.workflows.demo import compare_diagnoses
from sae_lens_crosscoder.workflows.publish import write_model_card

BATCH, STEPS, D_SAE, SHARD_ROWS = 64, 6, 32, 4


class WrongError(AssertionError):
    """What is on disk is neither what was written before nor what was to be written, and nothing said so."""


@dataclass(frozen=True)
class Work:
    """One kind of writing."""

    name: str
    write: Callable[[Path, int], Any]
    """Writes version 0 or 1 into a folder, or what is missing of it."""
    read: Callable[[Path], str]
    """A digest of what is there; a ValueError for what is refused, a WrongError for what is wrong."""
    over: int | None = 0
    """The version that is there before; None for work that goes on with what it finds."""


def text_digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "nothing"


def run_config(folder: Path, version: int) -> slc.CrosscoderRunnerConfig:
    return slc.CrosscoderRunnerConfig(
        sae=slc.BatchTopKCrosscoderTrainingConfig(d_model=96, d_sae=D_SAE, k=4),
        model_name="tiny-base",
        chat_model_name="tiny-chat",
        hook_name=TINY_HOOK,
        dataset_path=TINY_DATASET,
        context_size=TINY_CONTEXT_SIZE,
        training_tokens=STEPS * BATCH,
        train_batch_size_tokens=BATCH,
        store_batch_size_prompts=2,
        n_batches_in_buffer=4,
        n_held_out_rows=4,
        lr_warm_up_steps=0,
        log_frequency=1,
        n_checkpoints=STEPS - 1,
        n_checkpoints_kept=2,
        checkpoint_path=str(folder / "checkpoints" / "run"),
        output_path=str(folder / "output"),
        seed=version,
    )


class Works:
    """All kinds, with what they need: models, a crosscoder of each version, tokens."""

    def __init__(self, folder: Path) -> None:
        accumulators._SECONDS_BETWEEN_SAVES = 0.0  # so that there is something to kill
        self.pair = slc.HookedModelPair.from_pretrained("tiny-base", "tiny-chat")
        self.tokens = [torch.tensor(tiny_dataset(18, seed=seed)["input_ids"]) for seed in (0, 1)]
        self.runners = [self._runner(folder / str(version), version) for version in (0, 1)]
        self.crosscoders = [runner.run() for runner in self.runners]
        data = self.runners[0].held_out_data()
        self.data = slc.EvalData(pair=self.pair, tokens=self.tokens[0], batch_size=3)
        self.diagnoses = [slc.diagnose(crosscoder, data) for crosscoder in self.crosscoders]
        self.explorations = [self._exploration(version) for version in (0, 1)]
        prompts = [messages[:1] for messages in dialogues(12, 0, "held_out")]
        self.looks = [first_look(self.pair, prompts[n:], n_resamples=5, seed=n) for n in (0, 2)]
        rows = difference_rows(self.data, TINY_HOOK)
        self.directions = [difference_pca(rows, n_components=n) for n in (2, 3)]

    def all(self) -> list[Work]:
        return [
            Work("training with checkpoints", self._train, self._read_run, None),
            Work("the final save", self._save, self._read_crosscoder),
            Work("activation cache", self._cache, self._read_cache, None),
            Work("sums of a diagnosis", self._diagnose, lambda folder: text_digest(folder / "result"), None),
            Work("table of a diagnosis", self._save_diagnosis, self._read_diagnosis),
            Work("report", self._report, lambda folder: text_digest(folder / "report.html")),
            Work("explorer", self._explorer, lambda folder: text_digest(folder / "explorer.html")),
            Work("model card", self._card, lambda folder: text_digest(folder / "README.md")),
            Work("first look", lambda folder, n: self.looks[n].save(folder / "look"), self._read_look),
            Work("directions", lambda folder, n: self.directions[n].save(folder / "pca"), self._read_directions),
        ]

    def _runner(self, folder: Path, version: int) -> Any:
        cfg = run_config(folder, version)
        if self._checkpoints(folder):
            cfg.resume_from_checkpoint = "latest"
        return slc.CrosscoderTrainingRunner(cfg, override_model=self.pair)

    def _train(self, folder: Path, version: int) -> None:
        furthest = max((int(path.name) for path in self._checkpoints(folder)), default=0)
        runner = self._runner(folder, version)
        resumed = runner.cfg.resume_from_checkpoint
        if furthest and (resumed is None or int(Path(resumed).name) != furthest):
            raise WrongError(f"{furthest} tokens are in a checkpoint, but {resumed} was resumed")
        runner.run()

    def _read_run(self, folder: Path) -> str:
        for checkpoint in self._checkpoints(folder):
            if problem_with(checkpoint) is not None:
                raise WrongError(problem_with(checkpoint))
        return self._read_crosscoder(folder)

    def _checkpoints(self, folder: Path) -> list[Path]:
        """Those with a checkpoint's name."""
        found = checkpoints_in(*(folder / "checkpoints" / "run").glob("*"))
        return [path for path in found if path.name.isdigit()]

    def _save(self, folder: Path, version: int) -> None:
        runner = self.runners[version]
        runner.cfg.output_path = str(folder / "output")
        runner._save("")
        self.diagnoses[version].save(folder / "output")

    def _read_crosscoder(self, folder: Path) -> str:
        folder = folder / "output"
        if not folder.exists():
            return "nothing"
        with contextlib.suppress(ValueError):  # it is refused, or it is that of these weights
            self._read_diagnosis(folder.parent)
        crosscoder = slc.load(folder)
        of = [fingerprint(known.state_dict().values()) for known in self.crosscoders]
        version = of.index(fingerprint(crosscoder.state_dict().values()))
        if json.loads((folder / "cfg.json").read_text())["metadata"]["seed"] != version:
            raise WrongError("the weights of one run have the config of another")
        if json.loads((folder / "runner_cfg.json").read_text())["seed"] != version:
            raise WrongError("the weights of one run have the runner's config of another")
        return str(version)

    def _cache(self, folder: Path, version: int) -> None:
        options = {"prompts_per_shard": SHARD_ROWS, "batch_size": SHARD_ROWS}
        slc.cache_activations(folder / "cache", self.pair, self.tokens[version], TINY_HOOK, **options)

    def _read_cache(self, folder: Path) -> str:
        if not (folder / "cache").exists():
            return "nothing"
        cache = ActivationCache(folder / "cache")
        cache.verify()
        return fingerprint([*cache, cache.tokens])

    def _diagnose(self, folder: Path, version: int) -> None:
        folder.mkdir(exist_ok=True)
        made = slc.diagnose(self.crosscoders[version], self.data, checkpoint_path=folder / "sums")
        (folder / "result.new").write_text(made.latents.to_csv())
        (folder / "result.new").replace(folder / "result")

    def _save_diagnosis(self, folder: Path, version: int) -> None:
        (folder / "output").mkdir(parents=True, exist_ok=True)
        self.diagnoses[version].save(folder / "output")

    def _read_diagnosis(self, folder: Path) -> str:
        if not (folder / "output" / "latents.parquet").exists():
            return "nothing"
        table = Diagnosis.load(folder / "output").latents
        return str([table.equals(known.latents) for known in self.diagnoses].index(True))

    def _report(self, folder: Path, version: int) -> None:
        made = {"crosscoder": self.diagnoses[version]}
        write_report(made, folder / "report.html", compare_diagnoses(made))

    def _exploration(self, version: int) -> Exploration:
        return slc.explore(self.crosscoders[version], self.data, self.diagnoses[version], n_random=2)

    def _explorer(self, folder: Path, version: int) -> None:
        write_explorer({"crosscoder": self.explorations[version]}, folder / "explorer.html")

    def _card(self, folder: Path, version: int) -> None:
        if not (folder / "cfg.json").exists():
            self.crosscoders[0].save_model(folder)
        write_model_card(folder, f"owner/name-{version}")

    def _read_look(self, folder: Path) -> str:
        if not (folder / "look").exists():
            return "nothing"
        look = FirstLook.load(folder / "look")
        for n, known in enumerate(self.looks):
            tables_are_equal = look.hooks.equals(known.hooks) and look.positions.equals(known.positions)
            if tables_are_equal and torch.equal(look.vectors, known.vectors) and look.manifest == known.manifest:
                return str(n)
        raise WrongError("files of two first looks are taken for one")

    def _read_directions(self, folder: Path) -> str:
        if not (folder / "pca").exists():
            return "nothing"
        found = DifferenceDirections.load(folder / "pca")
        if len(found.names) != len(found.directions):
            raise WrongError("files of two results are taken for one")
        return str(len(found.names))
