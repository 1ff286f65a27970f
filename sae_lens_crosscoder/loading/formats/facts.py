"""Settings of a pair of models that config files state, or that are assumed where the widths are the paper's."""

from typing import Any

from sae_lens_crosscoder.loading.formats.foreign import (
    PAPER_MODELS,
    PAPER_WIDTHS,
    Fact,
    ForeignFile,
    ForeignOptions,
    ModelOrder,
)
from sae_lens_crosscoder.stacking import StackedLayout

_BY_ROLE = (
    ("base_model", "chat_model"),
    ("base_model_name", "chat_model_name"),
    ("base_model", "finetuned_model"),
    ("base_model", "ft_model"),
)
_BY_POSITION = (("model_a", "model_b"), ("model_A", "model_B"), ("model_a_name", "model_b_name"))
_LISTS = ("model_names", "models")


def of_paper(layout: StackedLayout, value: Any) -> Fact:
    """Assume a setting of the paper's crosscoders, if the widths are those of its models."""
    return Fact(value) if layout.d_models == PAPER_WIDTHS else Fact()


def order_of(file: ForeignFile, options: ForeignOptions, default: ModelOrder = "base_chat") -> Fact:
    """Return the order of the models in a file: the caller's, the config's, or that of its layout."""
    if options.model_order is not None:
        return Fact(options.model_order, stated=True)
    order = file.settings.text("model_order")
    if order not in (None, "base_chat", "chat_base"):
        raise ValueError(
            f"The config beside {file.path} has model_order={order!r:.80}, expected base_chat or chat_base."
        )
    return Fact(default) if order is None else Fact(order, stated=True)


def models_of(file: ForeignFile, layout: StackedLayout, order: ModelOrder) -> Fact:
    """Return the names of base and chat: the config's, or the paper's if the widths are those of its models."""
    for keys in _BY_ROLE:
        if all(key in file.settings for key in keys):
            names = tuple(file.settings.text(key) for key in keys)
            if None not in names:
                return Fact(names, stated=True)
    for key in _LISTS:
        if key in file.settings and (listed := file.settings.texts(key)) is not None:
            if len(listed) != 2:
                raise ValueError(f"The config beside {file.path} has {key}={list(listed)!r:.80}, expected two models.")
            return Fact(listed if order == "base_chat" else listed[::-1], stated=True)
    for keys in _BY_POSITION:
        if all(key in file.settings for key in keys):
            names = tuple(file.settings.text(key) for key in keys)
            if None not in names:
                return Fact(names if order == "base_chat" else names[::-1], stated=True)
    return of_paper(layout, PAPER_MODELS)


def hook_of(file: ForeignFile, layout: StackedLayout, paper_hook: str, *keys: str) -> Fact:
    """Return the hook that one of the config's keys names, or the paper's."""
    for key in keys:
        name = file.settings.text(key)
        if name is not None:
            return Fact(name, stated=True)
    return of_paper(layout, paper_hook)
