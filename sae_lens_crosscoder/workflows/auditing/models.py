"""Models of an audit: the pair, its base beside itself, and a control."""

from dataclasses import dataclass

from sae_lens_crosscoder.models.pair import HookedModelPair
from sae_lens_crosscoder.workflows.auditing.config import AuditConfig


@dataclass(frozen=True)
class AuditModels:
    """Pairs whose answers are compared; all share the base model."""

    pair: HookedModelPair
    again: HookedModelPair
    """The base model beside itself: what differs between its sampled answers is chance."""
    control: HookedModelPair | None
    """The base model and one that was tuned on the same topics without the behaviour."""

    @classmethod
    def of(cls, cfg: AuditConfig, given: HookedModelPair | None) -> "AuditModels":
        """Take the given models, or load those of the config.

        Raises:
            ValueError: unless the given models are base and chat, with a control between them if the config has one.
        """
        models = given or _loaded(cfg)
        n_expected = 2 if cfg.control is None else 3
        if len(models.members) != n_expected:
            expected = "base and chat model" if cfg.control is None else "base, control and chat model, in this order"
            raise ValueError(f"The pair has {len(models.members)} models, but the audit needs a {expected}.")
        names = [f"model_{m}" for m in range(n_expected)]
        again = HookedModelPair(
            models.base,
            models.base,
            model_names=(cfg.base, f"{cfg.base} again"),
            tokenizer=models.tokenizer,
        )
        if cfg.control is None:
            return cls(models, again, None)
        return cls(models.of(names[0], names[-1]), again, models.of(names[0], names[1]))


def _loaded(cfg: AuditConfig) -> HookedModelPair:
    # The chat model is the last: its tokenizer has the template.
    names = [cfg.base, *([] if cfg.control is None else [cfg.control]), cfg.chat]
    return HookedModelPair.from_pretrained(
        *names,
        device=cfg.device,
        chat_device=cfg.chat_device,
        dtype=cfg.dtype,
        model_class_name=cfg.model_class_name,
    )
