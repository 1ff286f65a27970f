"""Max-activating examples: what every latent fires on, and which model makes it fire."""

from pathlib import Path

from torch import Tensor
from tqdm.auto import tqdm

from sae_lens_crosscoder.activations.checks import require_finite
from sae_lens_crosscoder.activations.fingerprint import fingerprint
from sae_lens_crosscoder.activations.harvest import harvest
from sae_lens_crosscoder.analysis.example_file import ExamplesFile, read_examples, write_examples
from sae_lens_crosscoder.analysis.example_windows import ExampleWindows, TokenSpans
from sae_lens_crosscoder.analysis.manifest import provenance
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder, require_hook_name, require_inference
from sae_lens_crosscoder.models.pair import HookedModelPair


def collect_examples(
    crosscoder: InferenceCrosscoder,
    pair: HookedModelPair,
    tokens: Tensor,
    path: str | Path,
    *,
    n_top: int = 20,
    n_quantiles: int = 5,
    n_per_quantile: int = 5,
    window: tuple[int, int] = (20, 10),
    documents: Tensor | None = None,
    seed: int = 0,
    batch_size_prompts: int = 32,
) -> ExamplesFile:
    """Every latent's top contexts and contexts from all quantiles of its scores, in one file.

    The models run once. A context is a document, or what a prompt holds of it, and it has one example per latent: the
    tokens around the one with the highest score. Quantiles are those of the contexts' highest scores, over contexts in
    which the latent is on. They are taken from a uniform sample of `n_quantiles * n_per_quantile` of these, sorted and
    cut into equal bands: exact where there are no more contexts than that. Otherwise a border at quantile q is off by
    `sqrt(q (1 - q) / n)` for a sample of n, as the price of a single pass.

    Memory and file take about `16 d_sae (n_top + n_quantiles n_per_quantile) (before + 1 + after)` bytes, however many
    tokens there are. The same arguments give the same examples, in batches of any size.

    Args:
        tokens: ids of shape (batch, pos), best those that the crosscoder was not trained on.
        path: the file to write, which replaces what is there when it is complete.
        window: tokens shown before and after the highest score. A window never leaves its document or prompt.
        documents: an id per token, of the shape of the tokens: a document begins wherever it changes, and tokens with
            a negative id, such as padding, are left out. None: documents begin at the tokenizer's BOS token and with
            each prompt.
        seed: of the sample.

    Returns:
        The file, of which `[latent]` reads one latent (see `LatentExamples`); `read_examples(path)` opens it again.

    Raises:
        ValueError: for a training crosscoder, a pair it was not trained on, documents of another shape, activations
            that are NaN, or a folder that does not exist; but for the activations, before the models run.
    """
    crosscoder = require_inference(crosscoder, "collect_examples")
    sizes = {"n_top": n_top, "n_quantiles": n_quantiles, "n_per_quantile": n_per_quantile}
    _refuse_arguments({**sizes, "batch_size_prompts": batch_size_prompts}, window, tokens, documents, Path(path))
    metadata = crosscoder.cfg.metadata
    pair.require_trained_on(metadata.model_name, metadata.chat_model_name)
    hook_name = require_hook_name(crosscoder)
    windows = ExampleWindows(crosscoder, n_top, n_quantiles * n_per_quantile, window, seed)
    batches = harvest(pair, tokens, hook_name, batch_size_prompts)
    bos_id: int | None = getattr(pair.tokenizer, "bos_token_id", None)
    device = crosscoder.W_enc.device
    starts = range(0, len(tokens), batch_size_prompts)
    for start, batch in zip(tqdm(starts, desc="Examples", unit="batch", leave=False), batches, strict=True):
        rows = slice(start, start + batch_size_prompts)
        batch = batch.to(crosscoder.W_dec)
        require_finite(batch, crosscoder.layout, f"after the first {windows.n_tokens}")
        ids = None if documents is None else documents[rows].to(device)
        windows.add(batch, TokenSpans(tokens[rows].to(device), ids, bos_id))
    manifest = {
        **provenance(crosscoder),
        **sizes,
        "window": list(window),
        "sample_seed": seed,
        "d_models": list(crosscoder.layout.d_models),
        "context_size": tokens.shape[1],
        "n_tokens": windows.n_tokens,
        "tokens_sha256": fingerprint([tokens]),
        "documents_sha256": None if documents is None else fingerprint([documents]),
        "crosscoder_sha256": fingerprint(crosscoder.state_dict().values()),
    }
    write_examples(windows.tensors(), Path(path), manifest)
    return read_examples(path)


def _refuse_arguments(
    sizes: dict[str, int], window: tuple[int, int], tokens: Tensor, documents: Tensor | None, path: Path
) -> None:
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name}={value} leaves nothing to collect: it must be at least 1.")
    if min(window) < 0:
        raise ValueError(f"window={window} must be how many tokens to show before and after a peak, such as (20, 10).")
    if documents is not None and documents.shape != tokens.shape:
        raise ValueError(
            f"documents has shape {tuple(documents.shape)}, but tokens {tuple(tokens.shape)}: give an id per token."
        )
    if not path.parent.is_dir():
        raise ValueError(f"path={str(path)!r} is in a folder that does not exist: make it first.")
