"""What is asked about every latent: texts to explain it from, and others to score the explanation on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from sae_lens_crosscoder.activations.eval_data import EvalData
from sae_lens_crosscoder.analysis.diagnosis.manifest import provenance
from sae_lens_crosscoder.analysis.examples.collect import tokens_sha256
from sae_lens_crosscoder.analysis.examples.file import ExamplesFile, load_examples
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder, require_inference
from sae_lens_crosscoder.crosscoders.sealing import CROSSCODER_SHA256
from sae_lens_crosscoder.interpretation.choice import CaseMaker, LatentCase
from sae_lens_crosscoder.interpretation.embedding import Embedder
from sae_lens_crosscoder.interpretation.windows import draw_windows
from sae_lens_crosscoder.storage.checksums import named_fingerprint


@dataclass(frozen=True)
class InterpretationCases:
    """All that explaining and scoring need of the crosscoder and the models."""

    cases: tuple[LatentCase, ...]
    manifest: dict[str, Any]


def interpretation_cases(
    crosscoder: InferenceCrosscoder,
    data: EvalData,
    examples: ExamplesFile | str | Path,
    latents: Sequence[int],
    embed: Embedder,
    *,
    n_shown: int = 5,
    n_scored: int = 5,
    n_windows: int = 5000,
    seed: int = 0,
) -> InterpretationCases:
    """Texts of every latent to explain it from, and others, with negatives, to score an explanation on.

    Thirds are those of the file's uniform sample of contexts, by their highest score. The strongest third is shown by
    the strongest contexts of all. No context is both shown and scored, and at most half of a third is scored, so that
    a latent with fewer than six sampled contexts has no scores. Negatives are windows of text drawn at random in which
    the latent is on nowhere: as many as positives drawn from all of them (`random`), and for every positive the one
    that resembles it most (`hard`).

    What is asked about a latent depends on the seed and on the latent, not on which others are asked about.

    Args:
        data: tokens in which negatives are looked for, best those of the examples, with a pair or as a cache. What a
            latent does on masked tokens is not looked at.
        examples: of `collect_examples` on this crosscoder.
        latents: which to ask about, such as `table.index[table.label == "chat_only"]`.
        embed: texts to vectors, such as `sentence_embedder()` gives; by their cosine texts resemble one another.
        n_shown, n_scored: contexts of each third to explain from, and to score on, at most.
        n_windows: windows that negatives are chosen from. The models run on the prompts that these are in.

    Raises:
        ValueError: for a training crosscoder, another pair, no tokenizer, other examples, latents that do not exist or
            come twice, or numbers below 1; all before the models run.
    """
    crosscoder = require_inference(crosscoder, "interpretation_cases")
    sizes = {"n_shown": n_shown, "n_scored": n_scored, "n_windows": n_windows}
    file = examples if isinstance(examples, ExamplesFile) else load_examples(examples)
    _refuse_arguments(sizes, latents, crosscoder.cfg.d_sae)
    if data.tokenizer is None:
        raise ValueError(
            "interpretation_cases needs a tokenizer to show tokens as text. Load models that have one, or pass "
            "EvalData with a tokenizer."
        )
    sha256 = named_fingerprint(crosscoder.state_dict())
    if file.manifest[CROSSCODER_SHA256] != sha256:
        raise ValueError(
            f"The examples in {file.path} are of another crosscoder, whose latents are not these: make them again "
            "with slc.collect_examples."
        )
    windows = draw_windows(
        crosscoder,
        _on_cpu(data),
        torch.tensor(list(latents)),
        n_windows=n_windows,
        window=tuple(file.manifest["window"]),
        seed=seed,
    )
    maker = CaseMaker(windows, data.tokenizer, embed, n_shown=n_shown, n_scored=n_scored, seed=seed)
    shown = tqdm(latents, desc="Cases", unit="latent", leave=False)
    cases = tuple(maker.case(file[latent], column) for column, latent in enumerate(shown))
    manifest = {
        **provenance(crosscoder),
        **sizes,
        "cases_seed": seed,
        **tokens_sha256(*data.contexts),
        "examples": {name: file.manifest[name] for name in ("tokens_sha256", "sample_seed", "window")},
    }
    return InterpretationCases(cases, manifest)


def _on_cpu(data: EvalData) -> EvalData:
    tokens, token_mask, documents = (
        None if tensor is None else tensor.cpu() for tensor in (data.tokens, data.token_mask, data.documents)
    )
    return replace(data, tokens=tokens, token_mask=token_mask, documents=documents)


def _refuse_arguments(sizes: dict[str, int], latents: Sequence[int], d_sae: int) -> None:
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name}={value} leaves nothing to ask about: it must be at least 1.")
    if len(latents) == 0 or len(set(latents)) < len(latents):
        raise ValueError(f"latents must name at least one latent, and none twice, but are {list(latents)[:10]}.")
    if missing := [latent for latent in latents if not 0 <= latent < d_sae]:
        raise ValueError(f"There is no latent {missing[0]}: the crosscoder has latents 0 to {d_sae - 1}.")
