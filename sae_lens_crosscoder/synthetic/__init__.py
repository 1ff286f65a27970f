"""Planted worlds with known answers, null streams, and the score card that judges a crosscoder against them."""

from sae_lens_crosscoder.synthetic.concepts import Concept
from sae_lens_crosscoder.synthetic.layers import LayeredTokens, LayeredWorld, layers_found
from sae_lens_crosscoder.synthetic.null_streams import NullKind, null_activations, shuffled_batches
from sae_lens_crosscoder.synthetic.planted import PlantedTokens, PlantedWorld
from sae_lens_crosscoder.synthetic.scoring import (
    Attribution,
    ScoreCard,
    concept_recovery,
    score_card,
    truth_table,
)
from sae_lens_crosscoder.synthetic.worlds import background_world, family_world, lora_world, null_world, world_a

__all__ = [
    "Attribution",
    "Concept",
    "LayeredTokens",
    "LayeredWorld",
    "NullKind",
    "PlantedTokens",
    "PlantedWorld",
    "ScoreCard",
    "background_world",
    "concept_recovery",
    "family_world",
    "layers_found",
    "lora_world",
    "null_activations",
    "null_world",
    "score_card",
    "shuffled_batches",
    "truth_table",
    "world_a",
]
