"""Nu of every latent from the probe that judged it: for base-only latents, the base model's decoder."""

import pandas as pd

from sae_lens_crosscoder.arguments import validate_arguments

_SUFFIX = "_base_probe"


@validate_arguments
def with_own_probe(latents: pd.DataFrame) -> pd.DataFrame:
    """The table with nu, its intervals and presence of base-only latents replaced by those of their own probe.

    The columns of `diagnose` without a suffix are all probed with the chat model's decoder, as in the paper. A verdict
    on a base-only latent comes from the columns that end in `_base_probe`. Read nu beside verdicts from this table.

    Args:
        latents: the table of `diagnose`.

    Raises:
        ValueError: for a table without classes.

    >>> nus = {"label": ["base_only", "chat_only"], "nu_error": [5.0, 0.1], "nu_error_base_probe": [0.2, 9.0]}
    >>> with_own_probe(pd.DataFrame(nus)).nu_error.tolist()
    [0.2, 0.1]
    """
    if "label" not in latents:
        raise ValueError("latents has no column 'label': pass the table of `diagnose`.")
    is_base_only = latents["label"] == "base_only"
    own = {name.replace(_SUFFIX, ""): latents[name] for name in map(str, latents.columns) if _SUFFIX in name}
    return latents.assign(
        **{name: latents[name].where(~is_base_only, probed) for name, probed in own.items() if name in latents}
    )
