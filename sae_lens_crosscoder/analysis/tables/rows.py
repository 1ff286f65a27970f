"""The rows of a latent table, compared with its crosscoder."""

import pandas as pd

from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder


def validate_rows(latents: pd.DataFrame, crosscoder: InferenceCrosscoder, name: str = "latents") -> None:
    """Raise a ValueError unless a table has one row for each latent of the crosscoder."""
    if len(latents) != crosscoder.cfg.d_sae:
        raise ValueError(
            f"{name} has {len(latents)} rows, but the crosscoder has {crosscoder.cfg.d_sae} latents: pass the table of "
            "its own diagnosis."
        )
