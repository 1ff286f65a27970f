"""Every loader of the package on mutated files: refused, told (a warning), loaded right, loaded wrong, or crashed.

Right is, for our own files, what was written, or what the file says if its checksum was deleted; a config that was
edited under its checksum must load with a warning that names it. For other people's files, right is what their own
code would compute from the numbers in the file, by the reference.
"""

import csv
import dataclasses
import json
import math
import random
import re
import shutil
import warnings
from dataclasses import dataclass
from typing import get_args

import pyarrow.parquet as pq
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.loading.formats.foreign import ForeignFormat
from sae_lens_crosscoder.storage.accumulators import AccumulatorCheckpoint
from sae_lens_crosscoder.storage.checksums import FolderChecksums
from sae_lens_crosscoder.training.saved_run import load_runner_config
from tests.analysis.conftest import random_activations, random_crosscoder
from tests.crosscoders.conftest import batchtopk_crosscoder, stacked_batch, step
from tests.loading.foreign_files import LAYOUTS, tokens
from tests.loading.mutations import KINDS, kinds_for, mutate
from tests.loading.test_foreign_tables import PAPER
from tests.models.small_models import random_hooked_transformer, some_tokens

OUTCOMES = ("refused", "told", "loaded_right", "wrong", "crashed")
HOOK, WIDTHS = "blocks.0.hook_resid_post", (8, 16)
_BATCH, _N_STEPS = 8, 6


@dataclass(frozen=True)
class Loader:
    """How files come into a folder, and out of it as plain values; `make` may leave a note for the rest."""

    make: object
    read: object
    is_right: object
    varies: bool = False
    """Whether `make` has something to draw."""


def outcomes(name, n_files, seed, folder):
    """(mutation, outcome, error) of `n_files` mutated files, all kinds in turn."""
    rng = random.Random(f"{name} {seed}")
    loader, whole, mutated = LOADERS[name], folder / "whole", folder / "mutated"
    note, original = None, None
    for n in range(n_files):
        if n == 0 or (loader.varies and n % len(KINDS) == 0):
            shutil.rmtree(whole, ignore_errors=True)
            whole.mkdir(parents=True)
            note = loader.make(whole, rng)
            original = loader.read(whole, note)
            assert loader.is_right(whole, note, original, original)
        kinds = kinds_for(whole)
        kind = kinds[n % len(kinds)]
        shutil.rmtree(mutated, ignore_errors=True)
        shutil.copytree(whole, mutated)
        mutate(mutated, kind, rng)
        yield kind, *_outcome(loader, mutated, note, original)


def _outcome(loader, folder, note, original):
    names = [str(folder), *(path.name for path in folder.iterdir())]
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = loader.read(folder, note)
    except (ValueError, OSError) as error:
        names_it = any(name in str(error) for name in names)
        return ("refused" if names_it else "crashed"), error
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the readers that are written in Rust is no Exception
        return "crashed", error
    texts = [str(warning.message) for warning in caught if "checksum mismatch" in str(warning.message)]
    if texts:
        return ("told" if len(texts) == 1 and any(name in texts[0] for name in names) else "wrong"), texts
    return ("loaded_right" if loader.is_right(folder, note, original, result) else "wrong"), result


def plain(value):
    """Nested lists and dictionaries of numbers and texts, in which nan is equal to nan."""
    if isinstance(value, torch.Tensor):
        return [str(value.dtype), plain(value.tolist())]
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return "nan" if isinstance(value, float) and math.isnan(value) else value


def _json(path):
    """The fields of a file whose checksum was deleted; None while it is recorded."""
    recorded = json.loads(path.with_name("checksums.json").read_text()).get("files", {})
    return None if path.name in recorded else json.loads(path.read_text())


def _says(result, fields):
    """Whether a config holds whatever the file says, as JSON would."""

    def agrees(found, said):
        if isinstance(said, dict) and isinstance(found, dict):
            return all(key in found and agrees(found[key], value) for key, value in said.items())
        return plain(found) == plain(said)

    return agrees(json.loads(json.dumps(result)), fields)


def _make_own(folder, rng):
    crosscoder = batchtopk_crosscoder(activation_scaling="per_model")
    crosscoder.training_forward_pass(step(3 * stacked_batch()))
    crosscoder.cfg.metadata.hook_name = HOOK
    crosscoder.save_inference_model(folder)


def _read_own(folder, note):
    crosscoder = slc.load(folder)
    return crosscoder.cfg.to_dict(), plain(crosscoder.state_dict())


def _is_right_own(folder, note, original, result):
    fields = _json(folder / "cfg.json")
    if fields is None:
        return plain(result) == plain(original)
    described = {key: value for key, value in fields.items() if key != "device"}
    precise = described.get("dtype") == original[0]["dtype"]
    return _says(result[0], described) and (result[1] == original[1] or not precise)


def _make_latents(folder, rng):
    crosscoder = random_crosscoder()
    crosscoder.save_model(folder)
    (folder / "sae_weights.safetensors").unlink()
    slc.diagnose(crosscoder, slc.EvalData(activations=random_activations(400)), min_active=1).save(folder)


def _load_latents(folder, note):
    diagnosis = slc.Diagnosis.load(folder)
    table = diagnosis.latents
    return plain([table.to_dict("list"), list(table.index), table.dtypes.astype(str).to_dict(), diagnosis.manifest])


def _make_runner_config(folder, rng):
    sae = slc.BatchTopKCrosscoderTrainingConfig(d_model=8, d_sae=16, k=4)
    cfg = slc.CrosscoderRunnerConfig(sae=sae, training_tokens=2**22, hook_name=HOOK)
    (folder / "runner_cfg.json").write_text(json.dumps(cfg.to_dict()))
    checksums = FolderChecksums(folder)
    checksums.record("runner_cfg.json")
    checksums.write()


def _is_right_runner_config(folder, note, original, result):
    fields = _json(folder / "runner_cfg.json")
    if fields is None:
        return plain(result) == plain(original)
    # What is 0 or null is filled in, and what is derived is not read.
    said = {key: value for key, value in fields.items() if value and key != "tokens_per_buffer"}
    sae = {key: value for key, value in said["sae"].items() if key != "metadata" and (key, value) != ("d_in", 0)}
    return _says(result, {**said, "sae": sae})


def _make_cache(folder, rng):
    pair = slc.HookedModelPair(*_models(), model_names=("some/base", "some/chat"))
    slc.cache_activations(folder, pair, some_tokens(n_prompts=5, n_pos=6), HOOK, prompts_per_shard=3)


def _read_cache(folder, note):
    cache = slc.ActivationCache(folder)
    manifest = dataclasses.asdict(cache.manifest) | {"shards": [shard.n_tokens for shard in cache.manifest.shards]}
    return manifest, plain(torch.cat(list(cache)))


def _is_right_cache(folder, note, original, result):
    fields = _json(folder / "manifest.json")
    if fields is None:
        return plain(result) == plain(original)
    return _says(result[0], fields) and result[1] == original[1]


def _make_examples(folder, rng):
    crosscoder = random_crosscoder(d_models=WIDTHS)
    crosscoder.cfg.metadata.hook_name = HOOK
    sizes = dict(n_top=3, n_quantiles=2, n_per_quantile=2, window=(2, 1))
    path = folder / "examples.safetensors"
    slc.analysis.collect_examples(
        crosscoder, slc.EvalData(pair=slc.HookedModelPair(*_models()), tokens=some_tokens(4, 8)), path, **sizes
    )


def _read_examples(folder, note):
    file = slc.analysis.load_examples(folder / "examples.safetensors")
    return plain([file.manifest, [dataclasses.asdict(file[latent]) for latent in range(len(file))]])


class _Sums(dict):
    """Sums that are nothing but what was saved."""

    state_dict = dict.copy

    def load_state_dict(self, state):
        self.update(state)


def _checkpoint(folder, sums):
    return AccumulatorCheckpoint(
        folder / "sums.safetensors", "diagnosis", sums, {"crosscoder": "one", "data source": "another"}
    )


def _make_checkpoint(folder, rng):
    generator = torch.Generator().manual_seed(0)
    sums = {name: _Sums(total=torch.randn(5, 3, generator=generator), n=torch.tensor(7)) for name in ("a", "b")}
    checkpoint = _checkpoint(folder, sums)
    checkpoint._saved_at = -math.inf
    checkpoint.save_if_due(12)


def _read_checkpoint(folder, note):
    sums = {"a": _Sums(), "b": _Sums()}
    n_batches = _checkpoint(folder, sums).resume()
    return plain([n_batches, sums])


def _training(folder, n_steps, **fields):
    """A run on one stream, in the middle of which its checkpoint is."""
    torch.manual_seed(0)
    cfg = slc.CrosscoderTrainerConfig(
        total_training_samples=n_steps * _BATCH,
        train_batch_size_samples=_BATCH,
        lr_warm_up_steps=3,
        dead_feature_window=2,
        log_frequency=1,
        metrics_path=None,
        checkpoint_path=str(folder),
        **fields,
    )
    trainer = slc.CrosscoderTrainer(cfg, batchtopk_crosscoder(), iter(()))
    slc.training.train_together({"": trainer}, (stacked_batch(n=_BATCH, seed=n) for n in range(_N_STEPS)))
    return trainer


def _make_training_checkpoint(folder, rng):
    run = folder.with_name("run")
    _training(run, _N_STEPS // 2, save_final_checkpoint=True)
    (checkpoint,) = run.iterdir()
    shutil.copytree(checkpoint, folder, dirs_exist_ok=True)


def _read_training_checkpoint(folder, note):
    trainer = _training(folder.with_name("resumed"), _N_STEPS, resume_from_checkpoint=str(folder))
    state = [trainer.sae.state_dict(), trainer.optimizer.state_dict(), trainer.n_forward_passes_since_fired]
    return plain([*state, trainer.n_training_samples, trainer.history.to_dict("list")])


def _makes_foreign(*names):
    def make(folder, rng):
        name = rng.choice(names)
        LAYOUTS[name].write(folder)
        return LAYOUTS[name]

    return make


def _read_foreign(folder, layout):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        crosscoder = slc.load(folder, **layout.options)
        exact = slc.load(folder, dtype="float64", **layout.options)
    return crosscoder, exact


def _is_right_foreign(folder, layout, original, result):
    crosscoder, exact = result
    scores, reconstruction, _ = layout.reread(folder).expected()
    x = tokens(layout.n_sources).flatten(1).double()
    feature_acts = exact.encode(x)
    close = torch.equal(feature_acts > 0, scores > 0)
    close &= _is_close(feature_acts, scores) and _is_close(exact.decode(feature_acts), reconstruction.flatten(1))
    for name, tensor in crosscoder.state_dict().items():
        close &= bool(tensor.isfinite().all()) and _is_close(tensor.double(), exact.state_dict()[name])
    return close and crosscoder.cfg.metadata.hook_name == _hook_name(folder, layout)


def _is_close(actual, expected):
    return bool(((actual - expected).abs() <= 1e-5 * expected.abs().max() + 1e-300).all())


def _hook_name(folder, layout):
    settings = {}
    for name in layout.settings or {}:
        if name.endswith(".json") and (folder / name).exists():
            settings |= json.loads((folder / name).read_text())
    settings |= settings["trainer"] if isinstance(settings.get("trainer"), dict) else {}
    if layout.format == "dictionary_learning":
        layer = settings.get("layer")
        return None if layer is None else f"blocks.{layer}.hook_resid_post"
    if layout.format == "llamascopium":
        return "+".join(settings["hook_points"])
    if layout.format == "gemma_scope_2":
        layers = re.fullmatch(r"model\.layers\.\{([\d,]+)\}\.output", settings["hf_hook_point_in"])[1]
        return "+".join(f"blocks.{int(layer)}.hook_resid_post" for layer in layers.split(","))
    return settings.get("hook_point")


def _make_table(folder, rng):
    name = rng.choice(["feature_df.csv", "feature_df.parquet"])
    PAPER.to_csv(folder / name) if name.endswith("csv") else PAPER.to_parquet(folder / name)
    return name


def _is_right_table(folder, name, original, result):
    path = folder / name
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            cells = [row["dec_norm_diff"] for row in csv.DictReader(file)]
    else:
        cells = pq.read_table(path).to_pydict()["dec_norm_diff"]
    return plain([1 - float("nan" if cell in (None, "") else cell) for cell in cells]) == plain(
        result["delta_norm"].tolist()
    )


def _models():
    return [random_hooked_transformer(width, seed=seed) for seed, width in enumerate(WIDTHS)]


def _is_what_was_written(folder, note, original, result):
    return result == original


LOADERS = {
    "crosscoder": Loader(_make_own, _read_own, _is_right_own),
    "latents": Loader(_make_latents, _load_latents, _is_what_was_written),
    "runner_cfg": Loader(
        _make_runner_config, lambda folder, note: load_runner_config(str(folder)).to_dict(), _is_right_runner_config
    ),
    "cache": Loader(_make_cache, _read_cache, _is_right_cache),
    "examples": Loader(_make_examples, _read_examples, _is_what_was_written),
    "diagnosis_checkpoint": Loader(_make_checkpoint, _read_checkpoint, _is_what_was_written),
    "training_checkpoint": Loader(_make_training_checkpoint, _read_training_checkpoint, _is_what_was_written),
    **{
        format: Loader(
            _makes_foreign(*(name for name, layout in LAYOUTS.items() if layout.format == format)),
            _read_foreign,
            _is_right_foreign,
            varies=True,
        )
        for format in get_args(ForeignFormat)
    },
    "foreign_table": Loader(
        _make_table, lambda folder, name: slc.convert.load_latent_table(folder / name), _is_right_table, varies=True
    ),
}
