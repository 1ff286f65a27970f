"""A transformers model on this machine as the model that explains."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from sae_lens.util import str_to_dtype

from sae_lens_crosscoder.interpretation.prompts import Prompt


class LocalClient:
    """The most likely answers of a model in transformers' format, prompts of similar length batched together.

    Args:
        model: a Hub name or a local folder; its tokenizer must have a chat template.
        settings: further arguments of transformers' `generate`.
        batch_size: prompts at a time.

    Raises:
        ValueError: for a tokenizer without a chat template.
    """

    def __init__(
        self,
        model: str,
        *,
        settings: Mapping[str, Any] | None = None,
        batch_size: int = 8,
        device: str = "cpu",
        dtype: str = "float32",
    ) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._tokenizer: Any = AutoTokenizer.from_pretrained(model, padding_side="left")
        if self._tokenizer.chat_template is None:
            raise ValueError(f"The tokenizer of {model!r} has no chat template: give an instruction-tuned model.")
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        loaded: Any = AutoModelForCausalLM.from_pretrained(model, dtype=str_to_dtype(dtype))
        self._model = loaded.to(device).eval()
        self._batch_size = batch_size
        self.model = model
        self.settings: Mapping[str, Any] = {"max_new_tokens": 1000, **(settings or {}), "dtype": dtype}

    @torch.no_grad()
    def answers(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, str]]:
        """Every prompt's index and answer, batch by batch."""
        options = {name: value for name, value in self.settings.items() if name != "dtype"}
        by_length = sorted(range(len(prompts)), key=lambda index: len(prompts[index][-1]["content"]))
        for start in range(0, len(prompts), self._batch_size):
            indices = by_length[start : start + self._batch_size]
            batch = self._tokenizer.apply_chat_template(
                [list(prompts[index]) for index in indices],
                add_generation_prompt=True,
                padding=True,
                return_dict=True,
                return_tensors="pt",
            ).to(self._model.device)
            written = self._model.generate(
                **batch, do_sample=False, pad_token_id=self._tokenizer.pad_token_id, **options
            )
            answers = self._tokenizer.batch_decode(written[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
            yield from zip(indices, answers, strict=True)
