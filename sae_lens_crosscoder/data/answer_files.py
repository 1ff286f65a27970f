"""Answers on disk: generated once, batch by batch, and read again by later runs and other workers."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.data.answers import MODELS, Answers, Writer, join_answers
from sae_lens_crosscoder.data.chat_tokens import ChatTokens, chat_tokens, end_of_turn_ids
from sae_lens_crosscoder.data.prompts import Messages, request_of
from sae_lens_crosscoder.models.generation import (
    context_limit,
    generate,
    similar_lengths,
    validate_room,
    vocabulary_size,
)
from sae_lens_crosscoder.models.pair import HookedModelPair
from sae_lens_crosscoder.storage.checksums import digest, fingerprint, mismatch, named_fingerprint
from sae_lens_crosscoder.storage.tensor_files import load_tensors, save_tensors

_FINGERPRINT = "fingerprint"
_REMEDY = "Delete it: its answers are generated again."


@dataclass(frozen=True, kw_only=True)
class AnswerSettings:
    """Length, sampling and batch size of generated answers."""

    max_new_tokens: int = 64
    """Length at which an answer that does not end is cut off."""
    temperature: float = 0.0
    """0 for the most likely token (greedy); otherwise tokens are sampled from the softmax of logits / temperature."""
    seed: int = 0
    """Seed of the samples; a prompt's answer depends on it and on the prompt, not on the other prompts."""
    batch_size: int = 32
    """Prompts per forward pass."""

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} of answers must be at least 1.")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature={self.temperature} of answers must be 0 (greedy) or a positive number.")


class AnswerFiles:
    """The answers of two models to prompts, in files of a folder whose name depends on models, prompts and settings.

    Every batch of a model is a file of its own, with a checksum. What is missing is generated, so an interrupted call
    can be repeated, and several processes may share the work.

    Args:
        folder: contains a folder for each set of answers; None keeps answers in memory only.
        models: names or fingerprints of both models, precision and token replacements; see `models_of`.
        chats: prompts, with the tokens that the template writes before an answer.
    """

    def __init__(
        self,
        folder: Path | None,
        models: Mapping[str, Any],
        chats: Sequence[ChatTokens],
        end_ids: Sequence[int],
        settings: AnswerSettings,
    ) -> None:
        self.chats, self.end_ids, self.settings = list(chats), list(end_ids), settings
        ids = [chat.input_ids.tolist() for chat in self.chats]
        self._prompt_digests = [digest(prompt) for prompt in ids]
        key = digest([dict(models), ids, self.end_ids, asdict(settings)])
        self.folder = None if folder is None else folder / key[:16]
        self._batches = similar_lengths([len(prompt) for prompt in ids], settings.batch_size)

    @property
    def are_complete(self) -> bool:
        """True if nothing has to be generated."""
        each = range(len(self._batches))
        return self.folder is not None and all(self._path(name, i).exists() for name in MODELS for i in each)

    def generate(self, pair: HookedModelPair, worker: tuple[int, int] = (0, 1)) -> Answers:
        """Return the answers, after generating what is missing.

        Args:
            worker: (i, n) for the i-th of n processes, each of which begins with its own share. All may call this at
                the same time, and all return the same answers.

        Raises:
            ValueError: for prompts that leave no room for an answer, a model that cannot generate, or a damaged file.
        """
        pair.validate_one_tokenizer("Generating answers with both models")
        prompts = [chat.input_ids for chat in self.chats]
        for model in (pair.base, pair.chat):
            validate_room(prompts, self.settings.max_new_tokens, context_limit(model))
        return self._joined(pair, *worker)

    def of_one(self, pair: HookedModelPair, name: Writer) -> list[Int[Tensor, "_"]]:
        """The tokens that one of the models answers, by prompt, after generating what is missing."""
        texts = [torch.tensor([])] * len(self.chats)
        for i in tqdm(range(len(self._batches)), desc="Generating answers", unit="batch", leave=False):
            for row, text in zip(self._batches[i], self._batch(pair, name, i), strict=True):
                texts[row] = text
        return texts

    def load(self) -> Answers:
        """Return answers that are all on disk.

        Raises:
            ValueError: for a missing or damaged file.
        """
        return self._joined(None, 0, 1)

    def _joined(self, pair: HookedModelPair | None, worker: int, n_workers: int) -> Answers:
        texts: dict[Writer, list[Tensor]] = {name: [torch.tensor([])] * len(self.chats) for name in MODELS}
        jobs: list[tuple[Writer, int]] = [(name, i) for name in MODELS for i in range(len(self._batches))]
        shares = [jobs[j::n_workers] for j in range(n_workers)]
        jobs = [job for share in shares[worker:] + shares[:worker] for job in share]
        for name, i in tqdm(jobs, desc="Generating answers", unit="batch", leave=False, disable=self.are_complete):
            for row, text in zip(self._batches[i], self._batch(pair, name, i), strict=True):
                texts[name][row] = text
        return join_answers(self.chats, texts, self.end_ids)

    def _batch(self, pair: HookedModelPair | None, name: Writer, i: int) -> list[Tensor]:
        """One model's answers to a batch of prompts: from disk, or generated and written."""
        if pair is None or (self.folder is not None and self._path(name, i).exists()):
            return self._read(self._path(name, i))
        rows, settings = self._batches[i], self.settings
        texts = generate(
            pair.base if name == MODELS[0] else pair.chat,
            [self.chats[row].input_ids for row in rows],
            self.end_ids,
            max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            uniforms=None if settings.temperature == 0 else self._uniforms(rows, name),
            d_vocab=min(len(pair.tokenizer), *(vocabulary_size(model) for model in pair.members)),
        )
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            _write(texts, self._path(name, i))
        return texts

    def _uniforms(self, rows: Sequence[int], name: Writer) -> Float[Tensor, "prompt new"]:
        seeds = [int(digest([self.settings.seed, name, self._prompt_digests[row]])[:15], 16) for row in rows]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return torch.stack([torch.rand(self.settings.max_new_tokens, generator=each) for each in generators])

    def _path(self, name: Writer, i: int) -> Path:
        assert self.folder is not None
        return self.folder / f"{name}-{i:05d}.safetensors"

    def _read(self, path: Path) -> list[Tensor]:
        if not path.exists():
            raise ValueError(f"{path} is missing: its answers were not generated yet. Pass the pair to generate them.")
        tensors, metadata = load_tensors(path)
        if metadata.get(_FINGERPRINT) != named_fingerprint(tensors):
            raise ValueError(mismatch(path, _REMEDY))
        return list(tensors["ids"].long().split(tensors["lengths"].tolist()))


@validate_arguments
def generate_answers(
    pair: HookedModelPair,
    prompts: Sequence[str | Messages],
    settings: AnswerSettings | None = None,
    folder: str | Path | None = None,
) -> Answers:
    """Let both models of a pair answer prompts, and return the answers as rows that both models read.

    Each model writes with its key/value cache, the most likely token each time, or samples with a seed.

    Args:
        prompts: texts, or conversations up to the last message of the user; the chat template is applied.
        settings: length, temperature, seed and batch size; None for greedy answers of up to 64 tokens.
        folder: where to keep the answers, so that a later call reads them; a call with other models, prompts or
            settings writes its own. None to keep none.

    Raises:
        ValueError: without prompts, a chat template or an end-of-turn token, for prompts that leave no room for an
            answer, or models that cannot generate.
    """
    if not prompts:
        raise ValueError("`prompts` is empty. Pass at least one prompt.")
    requests = [request_of(prompt) for prompt in prompts]
    chats = [chat_tokens(pair.tokenizer, request, add_generation_prompt=True) for request in requests]
    end_ids = end_of_turn_ids(pair.tokenizer, requests[0])
    path = None if folder is None else Path(folder)
    models = {} if path is None else models_of(pair)
    return AnswerFiles(path, models, chats, end_ids, settings or AnswerSettings()).generate(pair)


def models_of(pair: HookedModelPair) -> dict[str, Any]:
    """Identify a pair's models by names, or fingerprints without names, with precision and token replacements."""
    weights = pair.model_names or tuple(fingerprint(model.parameters()) for model in pair.members)
    dtype = str(next(pair.base.parameters()).dtype).removeprefix("torch.")
    return named_models(weights, dtype, pair.token_replacements)


def named_models(names: Sequence[str], dtype: str, token_replacements: Mapping[str, str]) -> dict[str, Any]:
    """As `models_of`, for models that are not loaded."""
    return {"models": list(names), "dtype": dtype, "token_replacements": dict(token_replacements)}


def _write(texts: Sequence[Int[Tensor, "_"]], path: Path) -> None:
    """Write a file that appears complete, even if another process writes it at the same time."""
    tensors = {"ids": torch.cat(list(texts)).int(), "lengths": torch.tensor([len(text) for text in texts])}
    own = path.with_name(f"{path.name}.{os.getpid()}")
    save_tensors(tensors, own, {_FINGERPRINT: named_fingerprint(tensors)})
    own.replace(path)
