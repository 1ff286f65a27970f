"""diagnose: classify every latent of a crosscoder."""

from collections.abc import Sequence
from itertools import repeat
from pathlib import Path
from typing import Literal

import torch
from tqdm.auto import tqdm

from sae_lens_crosscoder.activations.eval_data import EvalData
from sae_lens_crosscoder.analysis.changed.changed import Changed
from sae_lens_crosscoder.analysis.diagnosis.conclusion import FVE_FLOOR, validate_fve_floor
from sae_lens_crosscoder.analysis.diagnosis.control import ControlRows
from sae_lens_crosscoder.analysis.diagnosis.diagnosis import Diagnosis
from sae_lens_crosscoder.analysis.diagnosis.family import (
    comparisons,
    family_diagnosis,
    validate_evidence,
    validate_use_of,
)
from sae_lens_crosscoder.analysis.diagnosis.null_runs import validate_nulls
from sae_lens_crosscoder.analysis.diagnosis.sums import DiagnosisSums
from sae_lens_crosscoder.analysis.diagnosis.verdict import MIN_ACTIVE, NuBounds, validate_bounds
from sae_lens_crosscoder.analysis.encoding import encoded
from sae_lens_crosscoder.analysis.inputs import BATCH_TOKENS, DataSource, data_source, shard_block
from sae_lens_crosscoder.analysis.latent_scaling.background_groups import BackgroundGroups
from sae_lens_crosscoder.analysis.use.result import LatentUse
from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder, validate_inference
from sae_lens_crosscoder.storage.accumulators import AccumulatorCheckpoint
from sae_lens_crosscoder.storage.checksums import named_fingerprint


@validate_arguments
def diagnose(
    crosscoder: InferenceCrosscoder,
    data: EvalData,
    *,
    models: Sequence[str] | None = None,
    null: Diagnosis | Sequence[Diagnosis] | None = None,
    changed: Changed | None = None,
    use: LatentUse | None = None,
    control: EvalData | None = None,
    free_directions: Literal["model_specific", "all"] = "model_specific",
    min_active: int = MIN_ACTIVE,
    bounds: NuBounds = "signed",
    fve_floor: float = FVE_FLOOR,
    checkpoint_path: str | Path | None = None,
) -> Diagnosis:
    """Classify every latent, and tell genuine model-specific latents from artifacts.

    Args:
        crosscoder: an inference crosscoder, as `CrosscoderTrainingRunner.run()` returns or `slc.load` loads.
        data: held-out data, such as `runner.held_out_data()`. Tokens that dominate are left out of everything, and
            the manifest says how many; see `EvalData.max_norm_ratio`.
        models: names of the two models to compare, the one in the place of base first: of `crosscoder.layout.names`, or
            as they were trained. With several hooks, two sources, such as `base@HOOK`. None for base and chat, and for
            every model beside the first if there are more.
        null: diagnoses of null runs, which give q-values: crosscoders trained in the same way on a pair that does not
            differ, and diagnosed in the same way. Such pairs are a model and itself with jittered weights
            (`chat_model_name="NAME+jitter=0.02"`), or after more pre-training. Runs of one kind of pair are pooled, and
            of several kinds the largest q counts; see `workflows.null_family`.
        changed: turned latents of this crosscoder, which join the table and the conclusion. Without it the conclusion
            says that they were not looked for.
        use: use of this crosscoder's latents, from `latent_use`, which joins the table and the conclusion.
        control: a topic-matched control: the base model beside a model tuned on the same topics without the behaviour,
            on the same tokens. Its activations are read along the decoders; no crosscoder of the control is needed.
        free_directions: latents whose free directions are measured: those of class chat_only or base_only
            (`model_specific`), or `all`, which takes two float64 numbers per latent and activation coordinate.
        min_active: latents that fire on fewer tokens get the verdict `rare`.
        bounds: `signed`, or `absolute` to count a very negative nu against a latent as well; see `verdict`.
        fve_floor: the conclusion is never "no difference detected" if the FVE of a model is below this.
        checkpoint_path: file in which the sums are saved every minute. An interrupted diagnosis resumes from it, to the
            same result. It is removed at the end.

    Returns:
        The diagnosis. Its `latents` have one row per latent. `delta_norm` says where it writes (0 base, 1 chat),
        `label` is its class, `nu_error` and `nu_reconstruction` (with 95 % bootstrap intervals `_low`, `_high`) measure
        whether that is an artifact, `verdict` sums it up. `nu_free` and `angle_degrees` compare the directions that the
        data prefer in both models, `rho` is how far its decoders differ (0 equal, 1 one-sided), and `q_value` is the
        false discovery rate of latents as one-sided as this one.
        `rho_limit` (L1 only) is how weak the latent may be in the other model and still get a decoder norm of 0.
        `presence` estimates how much of the latent base has (0 none, 1 as much as chat) from deviations within groups
        of tokens, which leave out what both models have on all tokens of a kind; `nu_error_centred` and
        `nu_reconstruction_centred` are nu from such deviations, and `beta_centred` is how much of the latent its own
        model has (1 all of it). Groups are frequent token ids, split by those of the data; the manifest says which.
        `probe` is the model whose decoder judged: chat, or base for a base-only latent.
        `nu_kind` says how nu is measured. For models of different widths it is `basis_free`: the verdict then rests on
        `nu_error_basis_free` and `nu_reconstruction_basis_free`, the lengths of the latent's directions in the other
        model over those in its own, which presume that latents fire independently.
        With a control, `control_presence` is how much of the latent the control model has, measured as `presence` is,
        and `in_control` marks one-sided latents that the control pair gained (0.4 or more) or lost as well.
        Columns ending in `_base_probe` mirror nu for base-only latents, those in `_unfiltered` keep nu where its
        denominator may be 0, and those in `_raw` (if models were scaled differently, or centred) are in the space of
        raw activations.
        For two of several sources, `base` and `chat` stand for the first and the second name. A latent that writes into
        neither (below 0.2 times its largest decoder norm) has no Delta_norm. For more than two models without `models`,
        `latents` has `label_<model>`, `verdict_<model>`, `delta_norm_<model>` and the like for each model beside the
        first, and `norm_share_<model>`, its share of a latent's decoder norms; `pairs` has their whole diagnoses.

    Raises:
        ValueError: for names that are not two sources, evidence such as null runs for more than one pair, a training
            crosscoder, a pair it was not trained on, a null run that was trained differently, activations that are NaN,
            groups that do not fit the tokens, no data, or a checkpoint of another diagnosis.
    """
    crosscoder = validate_inference(crosscoder, "diagnose")
    validate_bounds(bounds)
    validate_fve_floor(fve_floor)
    if free_directions not in ("model_specific", "all"):
        raise ValueError(f"free_directions={free_directions!r} must be 'model_specific' or 'all'.")
    compared = comparisons(crosscoder, models)
    validate_evidence(compared, {"null": null, "changed": changed, "use": use, "control": control})
    if use is not None:
        validate_use_of(use.names, next(iter(compared.values())))
    nulls = validate_nulls(null, crosscoder)
    for reading in (changed, use):
        if reading is not None:
            reading.validate_read_from(named_fingerprint(crosscoder.state_dict()))
    source = data_source(crosscoder, data)
    block_size = shard_block(data)
    control_rows = None if control is None else ControlRows(crosscoder, data, control)
    background = BackgroundGroups.of(data)
    background.validate_count(source.n_tokens)
    sums = {
        name: DiagnosisSums(crosscoder, block_size, background, free_directions, each, control is not None)
        for name, each in compared.items()
    }
    checkpoint = None
    if checkpoint_path is not None:
        options = f"block_size={block_size}, free_directions={free_directions}, groups={background.fingerprint()}"
        options += f", with control: {control is not None}"
        options += f", sources={[None if each is None else each.names for each in compared.values()]}"
        origin = {"crosscoder": named_fingerprint(crosscoder.state_dict()), "data source": source.fingerprint()}
        parts = {f"{name} {part}": each for name, of in sums.items() for part, each in of.parts.items()}
        parts["source"] = source
        checkpoint = AccumulatorCheckpoint(checkpoint_path, "diagnosis", parts, {**origin, "set of options": options})
    _stream(source, crosscoder, list(sums.values()), control_rows, checkpoint)
    options = (source.manifest(), nulls, min_active, bounds, fve_floor, changed, use)
    diagnoses = {name: each.diagnosis(*options) for name, each in sums.items()}
    if checkpoint is not None:
        checkpoint.remove()
    if len(diagnoses) == 1:
        return next(iter(diagnoses.values()))
    return family_diagnosis(crosscoder, diagnoses)


@torch.no_grad()
def _stream(
    source: DataSource,
    crosscoder: InferenceCrosscoder,
    sums: Sequence[DiagnosisSums],
    control: ControlRows | None,
    checkpoint: AccumulatorCheckpoint | None,
) -> None:
    """Add all tokens, or those that are not in the checkpoint."""
    n_seen = 0 if checkpoint is None else checkpoint.resume()
    total, seen = source.n_tokens, source.dominant.n_tokens
    if control is not None:
        control.take(seen)  # as the control has no checkpoint of its own
    with tqdm(total=total, initial=seen, desc="Diagnosing", unit="token", unit_scale=True, leave=False) as bar:
        for n_batches, batch in enumerate(source.batches(n_seen), start=n_seen + 1):
            places = torch.arange(seen, seen + len(batch.activations))[batch.ordinary.cpu()].split(BATCH_TOKENS)
            seen += len(batch.activations)
            n_added, controls = sums[0].scaling.n_tokens, repeat(None)
            if control is not None:
                controls = control.take(len(batch.activations))[batch.ordinary.cpu()].split(BATCH_TOKENS)
            for part, place, of_control in zip(
                encoded(crosscoder, batch.used, n_added), places, controls, strict=False
            ):
                for each in sums:
                    each.add(part, place, of_control)
            for part in encoded(crosscoder, batch.left_out, n_added):
                for each in sums:
                    each.add_left_out(part)
            bar.update(len(batch.activations))
            if checkpoint is not None:
                checkpoint.save_if_due(n_batches)
