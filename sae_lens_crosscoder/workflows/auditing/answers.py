"""Answers of an audit: the pair's, base's once more, and the control's."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Int
from torch import Tensor

from sae_lens_crosscoder.analysis.answers.phrases import find_phrases
from sae_lens_crosscoder.analysis.audit.limits import NullPhrases
from sae_lens_crosscoder.data.answer_files import AnswerFiles, AnswerSettings, models_of
from sae_lens_crosscoder.data.answers import Answers
from sae_lens_crosscoder.models.pair import HookedModelPair
from sae_lens_crosscoder.workflows.auditing.config import AuditConfig
from sae_lens_crosscoder.workflows.auditing.models import AuditModels
from sae_lens_crosscoder.workflows.auditing.prompts import AuditPrompts

ANSWERS_FOLDER = "answers"


@dataclass(frozen=True)
class AuditAnswers:
    """Sampled answers, and their texts by prompt."""

    rows: Answers
    """Both models' answers, as rows that both read."""
    base: list[str]
    chat: list[str]
    base_again: list[str]
    """Base's answers with other random numbers."""
    control: list[str] | None

    def null_phrases(self, prompts: AuditPrompts) -> NullPhrases:
        """Findings of the same search between two samples of base's answers, where nothing is to be found."""
        tested = find_phrases(self.base, self.base_again, prompts.held_out)
        return NullPhrases(n_tested=len(tested), n_found=sum(change.is_new for change in tested))


def answer_all(cfg: AuditConfig, models: AuditModels, prompts: AuditPrompts, folder: Path | None) -> AuditAnswers:
    """Let all models answer the prompts.

    Args:
        folder: keeps the answers, which are read again from there; None to keep none.
    """

    def second(pair: HookedModelPair) -> list[str]:
        return _texts(pair, answer_files(cfg, pair, prompts, folder).of_one(pair, "chat"))

    rows = answer_files(cfg, models.pair, prompts, folder).generate(models.pair)
    return AuditAnswers(
        rows=rows,
        base=_of_writer(models.pair, rows, "base", len(prompts)),
        chat=_of_writer(models.pair, rows, "chat", len(prompts)),
        base_again=second(models.again),
        control=None if models.control is None else second(models.control),
    )


def answer_files(cfg: AuditConfig, pair: HookedModelPair, prompts: AuditPrompts, folder: Path | None) -> AnswerFiles:
    """Files of a pair's sampled answers, in a folder or nowhere."""
    settings = AnswerSettings(
        max_new_tokens=cfg.max_new_tokens, temperature=1.0, seed=cfg.seed, batch_size=cfg.batch_size
    )
    return AnswerFiles(folder, {} if folder is None else models_of(pair), prompts.chats, prompts.end_ids, settings)


def _of_writer(pair: HookedModelPair, rows: Answers, model: str, n_prompts: int) -> list[str]:
    texts = [""] * n_prompts
    for row, (prompt, writer) in enumerate(zip(rows.prompts.tolist(), rows.writers, strict=True)):
        if writer in (model, "both"):
            (texts[prompt],) = _texts(pair, [rows.tokens[row, int(rows.starts[row]) : int(rows.lengths[row])]])
    return texts


def _texts(pair: HookedModelPair, answers: Sequence[Int[Tensor, "_"]]) -> list[str]:
    return [pair.tokenizer.decode(ids.tolist(), skip_special_tokens=True) for ids in answers]
