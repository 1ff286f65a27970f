"""Measure crosscoders on held-out tokens and write every table and figure of the paper for them."""

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import simple_parsing
from sae_lens.constants import RUNNER_CFG_FILENAME, SAE_CFG_FILENAME

from sae_lens_crosscoder.activations.cache.reader import ActivationCache
from sae_lens_crosscoder.activations.eval_data import EvalData
from sae_lens_crosscoder.analysis.paper.paper_tables import PaperTables, paper_tables
from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder
from sae_lens_crosscoder.data.labelled_rows import labelled_rows, tiny_labelled_rows
from sae_lens_crosscoder.loading.formats.foreign import ForeignOptions
from sae_lens_crosscoder.loading.load import load
from sae_lens_crosscoder.models.tiny import TINY_MODELS
from sae_lens_crosscoder.report.figures.images import ImageFormat, validate_formats, write_images
from sae_lens_crosscoder.report.paper.numbers import paper_numbers
from sae_lens_crosscoder.report.paper.page import paper_figures, write_paper_page
from sae_lens_crosscoder.report.paper.tables import write_paper_tables
from sae_lens_crosscoder.storage.field_types import validate_minimums
from sae_lens_crosscoder.training.saved_run import held_out_run
from sae_lens_crosscoder.workflows.saved_crosscoders import crosscoder_folders, load_pair

__all__ = ["PaperReportConfig", "PaperTables", "paper_report", "paper_tables", "run_paper_report"]

PAGE_FILENAME = "paper.html"
FIGURES_FOLDER = "figures"
_MAX_TINY_ROWS = 1024


@validate_arguments
def paper_report(
    crosscoders: InferenceCrosscoder | Mapping[str, InferenceCrosscoder],
    data: EvalData,
    *,
    output_path: str | Path = "paper",
    images: Sequence[ImageFormat] = ("png",),
) -> dict[str, PaperTables]:
    """Measure crosscoders and write all tables and figures of the paper, beside its own numbers.

    The files are `paper.html` (one page that opens offline), `paper.json` (all numbers and small tables),
    `latents.parquet` (all latents) and `figures/`.

    Args:
        crosscoders: one, or several of one pair and hook by name.
        data: held-out data. Template shares are known only with token groups.
        images: formats of the static images, `png` and `svg`. They need the extra `images` and Chrome. Without these,
            everything else is written, with a warning.

    Returns:
        The measured tables, by crosscoder name.

    Raises:
        ValueError: as `paper_tables`, or for an unknown image format, before anything runs.
    """
    if isinstance(crosscoders, InferenceCrosscoder):
        crosscoders = {"crosscoder": crosscoders}
    validate_formats(images)
    folder = Path(output_path)
    folder.mkdir(parents=True, exist_ok=True)  # fails before the work
    tables = paper_tables(crosscoders, data)
    figures = paper_figures(tables)
    numbers = paper_numbers(tables)
    write_paper_tables(tables, folder, numbers)
    write_paper_page(tables, folder / PAGE_FILENAME, numbers, figures)
    try:
        if images:
            write_images(figures, folder / FIGURES_FOLDER, images)
    except ValueError as error:
        warnings.warn(f"No static images in {folder}. {error}", stacklevel=2)
    return tables


@dataclass(kw_only=True)
class PaperReportConfig(ForeignOptions):
    """Crosscoders to report on, and the data to measure them on."""

    crosscoder: str = simple_parsing.field(positional=True)
    """A crosscoder's folder, file or Hub id in any layout that slc.load reads, or a folder of several of one pair."""
    output_path: str = "paper"
    """Folder for paper.html, paper.json, latents.parquet and figures."""
    chats: str | None = None
    """A file of held-out conversations: one JSON list of messages with role and content per line."""
    texts: str | None = None
    """A file of held-out plain text, one document per line. It can be combined with chats."""
    activations: str | None = None
    """A folder that slc.cache_activations wrote, instead of models and tokens."""
    n_rows: int | None = None
    """Largest number of conversations, texts or contexts of each kind, from the first."""
    max_length: int = 1024
    """Longest conversation or text, in tokens."""
    images: list[str] = field(default_factory=lambda: ["png"])
    """Formats of the static images, png and svg."""
    batch_size: int = 32
    """Rows per forward pass."""
    device: str = "cpu"
    """Device of the models and crosscoders."""
    dtype: str = "float32"
    """Dtype of the models."""
    model_class_name: str = "HookedTransformer"
    """HookedTransformer or TransformerBridge."""

    def __post_init__(self) -> None:
        super().__post_init__()
        validate_minimums(self, n_rows=1, max_length=1, batch_size=1)


@validate_arguments
def run_paper_report(cfg: PaperReportConfig) -> dict[str, PaperTables]:
    """Run `paper_report` on one crosscoder, or on several of one pair.

    Without chats, texts or activations, the data are the built-in pair's held-out rows, or the rows that training held
    out according to runner_cfg.json. Only the former have known template tokens.
    """
    validate_formats(cfg.images)
    if cfg.n_rows is not None and cfg.n_rows < 1:
        raise ValueError(f"n_rows={cfg.n_rows} must be at least 1.")
    chats, texts = _read_chats(cfg), _read_texts(cfg)
    path = Path(cfg.crosscoder)
    holds_several = not (path / SAE_CFG_FILENAME).exists() and any(path.glob(f"*/{SAE_CFG_FILENAME}"))
    folders = crosscoder_folders(path) if holds_several else {path.resolve().name: cfg.crosscoder}
    options = {name: getattr(cfg, name) for name in cfg.given}
    crosscoders = {name: load(folder, device=cfg.device, **options) for name, folder in folders.items()}
    data = _data(cfg, crosscoders, Path(next(iter(folders.values()))), chats, texts)
    images: Any = cfg.images
    return paper_report(crosscoders, data, output_path=cfg.output_path, images=images)


def _data(
    cfg: PaperReportConfig,
    crosscoders: dict[str, InferenceCrosscoder],
    folder: Path,
    chats: list[list[dict[str, str]]],
    texts: list[str],
) -> EvalData:
    """Load the data that the config names, or else held-out rows of the built-in pair or the training run."""
    if cfg.activations is not None:
        return EvalData(activations=ActivationCache(cfg.activations))
    is_tiny = all(crosscoder.cfg.metadata.chat_model_name in TINY_MODELS for crosscoder in crosscoders.values())
    runner_path = folder / RUNNER_CFG_FILENAME
    if not (chats or texts or is_tiny or runner_path.exists()):
        raise ValueError(
            f"{cfg.crosscoder} has no {RUNNER_CFG_FILENAME}, so its held-out rows are unknown: pass --chats, --texts "
            "or --activations that were held out from its training."
        )
    if not (chats or texts or is_tiny):
        held_out = held_out_run(str(folder), None, "pass --chats, --texts or --activations.")
        return replace(held_out.held_out_data(cfg.n_rows), batch_size=cfg.batch_size)
    pair_options = {"device": cfg.device, "dtype": cfg.dtype, "model_class_name": cfg.model_class_name}
    pair = load_pair(crosscoders, cfg.crosscoder, **pair_options)
    if chats or texts:
        rows = labelled_rows(pair.tokenizer, chats, texts, cfg.max_length)
    else:
        rows = tiny_labelled_rows(cfg.n_rows or _MAX_TINY_ROWS)
    return EvalData(pair=pair, tokens=rows.tokens, groups=rows.groups, sources=rows.sources, batch_size=cfg.batch_size)


def _read_chats(cfg: PaperReportConfig) -> list[list[dict[str, str]]]:
    if cfg.activations is not None and (cfg.chats is not None or cfg.texts is not None):
        raise ValueError("Pass either `activations` or `chats` and `texts`, not both.")
    if cfg.chats is None:
        return []
    chats: list[list[dict[str, str]]] = []
    for i, line in enumerate(_lines(cfg.chats)[: cfg.n_rows], start=1):
        try:
            messages = json.loads(line)
            chats.append([{"role": message["role"], "content": message["content"]} for message in messages])
        except (json.JSONDecodeError, TypeError, KeyError) as error:
            raise ValueError(
                f"{cfg.chats}, conversation {i}: expected a JSON list of messages with role and content, "
                f"got {line[:60]!r}."
            ) from error
    return chats


def _read_texts(cfg: PaperReportConfig) -> list[str]:
    return [] if cfg.texts is None else _lines(cfg.texts)[: cfg.n_rows]


def _lines(path: str) -> list[str]:
    """Read the lines of a file that are not blank."""
    lines = [line for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"{path} is empty.")
    return lines
