"""Max-activating examples: the contexts on which every latent fires, and each model's share in it."""

from pathlib import Path

from torch import Tensor
from tqdm.auto import tqdm

from sae_lens_crosscoder.activations.eval_data import EvalData
from sae_lens_crosscoder.activations.harvest import validate_activations
from sae_lens_crosscoder.analysis.diagnosis.manifest import provenance
from sae_lens_crosscoder.analysis.examples.file import EXAMPLES_FILENAME, ExamplesFile, load_examples, save_examples
from sae_lens_crosscoder.analysis.examples.windows import ExampleWindows, TokenSpans
from sae_lens_crosscoder.analysis.inputs import PromptSource
from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder, validate_inference
from sae_lens_crosscoder.data.beginnings import document_start_id
from sae_lens_crosscoder.storage.checksums import fingerprint


@validate_arguments
def collect_examples(
    crosscoder: InferenceCrosscoder,
    data: EvalData,
    path: str | Path = EXAMPLES_FILENAME,
    *,
    n_top: int = 20,
    n_quantiles: int = 5,
    n_per_quantile: int = 5,
    window: tuple[int, int] = (20, 10),
    seed: int = 0,
) -> ExamplesFile:
    """Save every latent's top contexts, and contexts from all quantiles of its scores, in one file.

    The models run once, or not at all on a cache. A context is the part of a document in one prompt, and it has one
    example per latent: the tokens around the one with the highest score. Quantiles are those of the contexts' highest
    scores, over contexts in which the latent is active. They are taken from a uniform sample of
    `n_quantiles * n_per_quantile` of these, sorted and cut into equal bands: exact where there are no more contexts
    than that. Otherwise a border at quantile q has the standard error `sqrt(q (1 - q) / n)` for a sample of n.

    Memory and file take about `16 d_sae (n_top + n_quantiles n_per_quantile) (before + 1 + after)` bytes, for any
    number of tokens. The same arguments give the same examples, in batches of any size.

    Args:
        data: held-out tokens with a pair, or a cache. Masked tokens, and those that dominate, are no peaks and have no
            score; they are shown inside a window, but not at its ends. Without `documents`, a document begins at the
            tokenizer's BOS token, unless that also marks turns, and at each prompt.
        path: the file to write; an existing file is replaced when the new one is complete.
        window: tokens shown before and after the highest score. A window never leaves its document or prompt.
        seed: of the sample.

    Returns:
        The file, of which `[latent]` loads one latent (see `LatentExamples`); `load_examples(path)` opens it again.

    Raises:
        ValueError: for a training crosscoder, a pair it was not trained on, a mask without tokens, activations that are
            NaN, or a folder that does not exist; all but the NaN are found before the models run.
    """
    crosscoder = validate_inference(crosscoder, "collect_examples")
    sizes = {"n_top": n_top, "n_quantiles": n_quantiles, "n_per_quantile": n_per_quantile}
    _validate_arguments(sizes, window, Path(path))
    source = PromptSource(crosscoder, data)
    tokens, token_mask, documents = source.tokens, source.token_mask, data.documents
    if documents is not None and documents.shape != tokens.shape:  # of a cache, whose tokens EvalData has not read
        raise ValueError(
            f"documents has shape {tuple(documents.shape)}, but the cache's tokens {tuple(tokens.shape)}. Pass one "
            "document id per token."
        )
    windows = ExampleWindows(crosscoder, n_top, n_quantiles * n_per_quantile, window, seed)
    bos_id = document_start_id(data.tokenizer)
    device = crosscoder.W_enc.device
    for rows, used, batch in tqdm(source, desc="Examples", unit="batch", leave=False):
        batch = batch.to(crosscoder.W_dec)
        validate_activations(batch, crosscoder.layout, f"after the first {windows.n_tokens}")
        ids = None if documents is None else documents[rows].to(device)
        windows.add(batch, TokenSpans(tokens[rows].to(device), ids, bos_id, used.to(device)))
    manifest = {
        **provenance(crosscoder),
        **sizes,
        "window": list(window),
        "sample_seed": seed,
        "d_models": list(crosscoder.layout.d_models),
        "hook_names": list(crosscoder.layout.hook_names),
        "context_size": tokens.shape[1],
        "n_tokens": windows.n_tokens,
        "max_norms": None if source.limits.max_norms is None else list(source.limits.max_norms),
        **tokens_sha256(tokens, token_mask),
        "documents_sha256": None if documents is None else fingerprint([documents]),
    }
    save_examples(windows.tensors(), Path(path), manifest)
    return load_examples(path)


def validate_examples(examples: ExamplesFile, tokens: Tensor, token_mask: Tensor) -> None:
    """Raise a ValueError unless the examples were collected from these tokens with this mask."""
    for name, sha256 in tokens_sha256(tokens, token_mask).items():
        if examples.manifest.get(name) != sha256:
            raise ValueError(
                f"The examples in {examples.path} were collected from other tokens, or with another token mask. "
                "Collect them again with slc.analysis.collect_examples, or delete the file."
            )


def tokens_sha256(tokens: Tensor, token_mask: Tensor) -> dict[str, str | None]:
    """Digests of tokens and their mask for a manifest; that of a mask of everything is None."""
    mask_sha256 = None if token_mask.all() else fingerprint([token_mask])
    return {"tokens_sha256": fingerprint([tokens]), "token_mask_sha256": mask_sha256}


def _validate_arguments(sizes: dict[str, int], window: tuple[int, int], path: Path) -> None:
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1.")
    if min(window) < 0:
        raise ValueError(
            f"window={window} must not be negative: pass the tokens to show before and after a peak, such as (20, 10)."
        )
    if not path.parent.is_dir():
        raise ValueError(f"path={str(path)!r} is in a folder that does not exist. Create the folder first.")
