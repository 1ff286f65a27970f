"""Max-activating examples: what every latent fires on, and which model makes it fire."""

from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm.auto import tqdm

from sae_lens_crosscoder.activations.cache.reader import ActivationCache
from sae_lens_crosscoder.activations.harvest import validate_activations
from sae_lens_crosscoder.analysis.diagnosis.manifest import provenance
from sae_lens_crosscoder.analysis.examples.file import EXAMPLES_FILENAME, ExamplesFile, read_examples, write_examples
from sae_lens_crosscoder.analysis.examples.windows import ExampleWindows, TokenSpans
from sae_lens_crosscoder.analysis.inputs import prompt_source
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder, require_inference
from sae_lens_crosscoder.models.pair import HookedModelPair
from sae_lens_crosscoder.storage.checksums import fingerprint


def collect_examples(
    crosscoder: InferenceCrosscoder,
    pair: HookedModelPair | None = None,
    tokens: Tensor | None = None,
    path: str | Path = EXAMPLES_FILENAME,
    *,
    keep: Tensor | None = None,
    activations: ActivationCache | None = None,
    n_top: int = 20,
    n_quantiles: int = 5,
    n_per_quantile: int = 5,
    window: tuple[int, int] = (20, 10),
    documents: Tensor | None = None,
    tokenizer: Any = None,
    seed: int = 0,
    batch_size_prompts: int = 32,
) -> ExamplesFile:
    """Every latent's top contexts and contexts from all quantiles of its scores, in one file.

    The models run once, or not at all on a cache. A context is a document, or what a prompt holds of it, and it has one
    example per latent: the tokens around the one with the highest score. Quantiles are those of the contexts' highest
    scores, over contexts in which the latent is on. They are taken from a uniform sample of
    `n_quantiles * n_per_quantile` of these, sorted and cut into equal bands: exact where there are no more contexts
    than that. Otherwise a border at quantile q is off by `sqrt(q (1 - q) / n)` for a sample of n, as the price of a
    single pass.

    Memory and file take about `16 d_sae (n_top + n_quantiles n_per_quantile) (before + 1 + after)` bytes, however many
    tokens there are. The same arguments give the same examples, in batches of any size.

    Args:
        pair, tokens: the two models, and ids of shape (batch, pos), best those that the crosscoder was not trained on.
        path: the file to write, which replaces what is there when it is complete.
        keep: which of the tokens count, True or False each, as `runner.held_out_kept`; None for all. One that does not
            is no peak and has no score. It is shown between others that do, but not at the ends, as padding is.
        activations: instead of a pair and tokens, a cache of their activations.
        window: tokens shown before and after the highest score. A window never leaves its document or prompt.
        documents: an id per token, of the shape of the tokens: a document begins wherever it changes, and tokens with
            a negative id, such as padding, are left out. None: documents begin at the tokenizer's BOS token and with
            each prompt.
        tokenizer: the one whose BOS token that is; by default the pair's. With none, each prompt is a document.
        seed: of the sample.

    Returns:
        The file, of which `[latent]` reads one latent (see `LatentExamples`); `read_examples(path)` opens it again.

    Raises:
        ValueError: for a training crosscoder, a pair it was not trained on, documents of another shape, nothing that
            counts, activations that are NaN, or a folder that does not exist; but for the activations, before the
            models run.
    """
    crosscoder = require_inference(crosscoder, "collect_examples")
    sizes = {"n_top": n_top, "n_quantiles": n_quantiles, "n_per_quantile": n_per_quantile}
    _refuse_arguments({**sizes, "batch_size_prompts": batch_size_prompts}, window, Path(path))
    source = prompt_source(crosscoder, pair, tokens, activations, batch_size_prompts, "collect_examples", keep)
    tokens, keep = source.tokens, source.keep
    _refuse_documents(documents, tokens)
    windows = ExampleWindows(crosscoder, n_top, n_quantiles * n_per_quantile, window, seed)
    bos_id: int | None = getattr(tokenizer or getattr(pair, "tokenizer", None), "bos_token_id", None)
    device = crosscoder.W_enc.device
    for rows, batch in tqdm(source, desc="Examples", unit="batch", leave=False):
        batch = batch.to(crosscoder.W_dec)
        validate_activations(batch, crosscoder.layout, f"after the first {windows.n_tokens}")
        ids = None if documents is None else documents[rows].to(device)
        windows.add(batch, TokenSpans(tokens[rows].to(device), ids, bos_id, keep[rows].to(device)))
    manifest = {
        **provenance(crosscoder),
        **sizes,
        "window": list(window),
        "sample_seed": seed,
        "d_models": list(crosscoder.layout.d_models),
        "context_size": tokens.shape[1],
        "n_tokens": windows.n_tokens,
        **tokens_sha256(tokens, keep),
        "documents_sha256": None if documents is None else fingerprint([documents]),
    }
    write_examples(windows.tensors(), Path(path), manifest)
    return read_examples(path)


def require_examples_of(examples: ExamplesFile, tokens: Tensor, keep: Tensor) -> None:
    """Raise a ValueError unless the examples were collected from these tokens, of which the same ones counted."""
    for name, sha256 in tokens_sha256(tokens, keep).items():
        if examples.manifest.get(name) != sha256:
            raise ValueError(
                f"The examples in {examples.path} are of other tokens, or of all where some are left out now: make the "
                "file again with slc.collect_examples, or delete it if it was found in a crosscoder's folder."
            )


def tokens_sha256(tokens: Tensor, keep: Tensor) -> dict[str, str | None]:
    """What a manifest says of tokens, and of which of them count if not all do."""
    return {"tokens_sha256": fingerprint([tokens]), "keep_sha256": None if keep.all() else fingerprint([keep])}


def _refuse_arguments(sizes: dict[str, int], window: tuple[int, int], path: Path) -> None:
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name}={value} leaves nothing to collect: it must be at least 1.")
    if min(window) < 0:
        raise ValueError(f"window={window} must be how many tokens to show before and after a peak, such as (20, 10).")
    if not path.parent.is_dir():
        raise ValueError(f"path={str(path)!r} is in a folder that does not exist: make it first.")


def _refuse_documents(documents: Tensor | None, tokens: Tensor) -> None:
    if documents is not None and documents.shape != tokens.shape:
        raise ValueError(
            f"documents has shape {tuple(documents.shape)}, but tokens {tuple(tokens.shape)}: give an id per token."
        )
