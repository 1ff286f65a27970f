"""Published layouts of crosscoders and of latent tables, also as `slc.convert`."""

from sae_lens_crosscoder.loading.formats.dictionary_learning_export import save_dictionary_learning
from sae_lens_crosscoder.loading.formats.foreign import ForeignOptions
from sae_lens_crosscoder.loading.formats.latent_tables import load_latent_table

__all__ = ["ForeignOptions", "load_latent_table", "save_dictionary_learning"]
