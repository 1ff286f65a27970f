"""Recognise a published layout by its tensors, config and file name."""

from collections.abc import Iterable

from sae_lens_crosscoder.loading.formats.crosscode import ALIASES
from sae_lens_crosscoder.loading.formats.crosscode import TENSORS as CROSSCODE_TENSORS
from sae_lens_crosscoder.loading.formats.dedicated_features import MASKS, PARTITION
from sae_lens_crosscoder.loading.formats.dictionary_learning import MAIN_TENSORS
from sae_lens_crosscoder.loading.formats.foreign import ForeignFormat
from sae_lens_crosscoder.loading.formats.llamascopium import TENSORS as LLAMASCOPIUM_TENSORS
from sae_lens_crosscoder.loading.formats.settings import Settings

SIGNS: dict[ForeignFormat, tuple[str, ...]] = {
    "dictionary_learning": MAIN_TENSORS,
    "llamascopium": LLAMASCOPIUM_TENSORS,
    "crosscode": (*CROSSCODE_TENSORS, *ALIASES),
}
"""Tensors of which a file of a layout has at least one."""


def recognise(tensors: Iterable[str], settings: Settings, file_name: str) -> ForeignFormat | None:
    """Return the layout of a file with these tensors; None if it is unknown."""
    names = set(tensors)
    if any(name.startswith("params_layer_") for name in names):
        return "gemma_scope_2"
    is_dedicated = not names.isdisjoint(MASKS) or ("n_a" in settings and "n_b" in settings)
    if is_dedicated or f"{PARTITION}model_a_exclusive_pct" in settings:
        return "dedicated_features"
    for layout, signs in SIGNS.items():
        if not names.isdisjoint(signs):
            # The tensors have the same names, but those of Kissane et al. expect scaled activations.
            return "kissane" if layout == "crosscode" and file_name == "cc_weights.pt" else layout
    return None


def known_layouts() -> str:
    """The layouts of one file and the tensors that tell them, for messages."""
    shown = {**SIGNS, "crosscode": CROSSCODE_TENSORS, "dedicated_features": MASKS}
    return "; ".join(f"{layout} ({', '.join(signs)})" for layout, signs in shown.items())
