"""Convert the crosscoder of Kissane et al. for Gemma 2 2B, whose weights expect scaled activations."""

from sae_lens_crosscoder.loading.formats.crosscode import convert_stacked
from sae_lens_crosscoder.loading.formats.foreign import PAPER_WIDTHS, ForeignCrosscoder, ForeignFile, ForeignOptions

KISSANE_SCALES = (0.2758961493232058, 0.24422852496546169)
"""sqrt(d) / mean |h^m| of base and chat: not in the file, but in public copies of the authors' notebook."""


def convert_kissane(file: ForeignFile, options: ForeignOptions) -> ForeignCrosscoder:
    """Convert a `cc_weights.pt` to a crosscoder of raw activations.

    With the default scales, `delta_norm` is that of the file's own norms, and reproduces the published 265 / 14,652 /
    98 / 1,369 latents per class; `delta_norm_raw` is that of raw activations.

    Raises:
        ValueError: for weights of other models without `activation_scales`, which these files leave out.
    """
    foreign = convert_stacked(file, options, "kissane", KISSANE_SCALES, "BOS (and no chat template was used)")
    if options.activation_scales is None and foreign.layout.d_models != PAPER_WIDTHS:
        raise ValueError(
            f"{file.path} expects scaled activations and leaves the scales out; they are known for Gemma 2 2B only, "
            f"and these models are {foreign.layout.d_models} wide. Pass activation_scales=(base, chat), or (1, 1) if "
            "you scale activations yourself."
        )
    return foreign
