"""Crosscoders for SAELens and TransformerLens: what fine-tuning changed inside a language model, and what is artifact.

Importing registers the architectures with SAELens and does nothing else. The names below are the public ones, in the
order in which an analysis uses them.
"""

from sae_lens_crosscoder.activations.cache import ActivationCache
from sae_lens_crosscoder.activations.caching import cache_activations
from sae_lens_crosscoder.activations.checks import NonFiniteError
from sae_lens_crosscoder.activations.masks import ChatTokens, chat_tokens
from sae_lens_crosscoder.activations.token_groups import TokenGroups, token_groups
from sae_lens_crosscoder.analysis.agreement import agreement
from sae_lens_crosscoder.analysis.correlations import correlations
from sae_lens_crosscoder.analysis.decoder_pairs import decoupled_pairs
from sae_lens_crosscoder.analysis.decoupling import activation_divergence
from sae_lens_crosscoder.analysis.delta_norm import delta_norm
from sae_lens_crosscoder.analysis.diagnose import diagnose
from sae_lens_crosscoder.analysis.example_file import read_examples
from sae_lens_crosscoder.analysis.examples import collect_examples
from sae_lens_crosscoder.analysis.latent_scaling import LatentScaling
from sae_lens_crosscoder.analysis.nu_by_group import nu_by_group
from sae_lens_crosscoder.analysis.statistics import latent_statistics
from sae_lens_crosscoder.analysis.table import read_latents, write_latents
from sae_lens_crosscoder.causal.compare import next_tokens, token_kl
from sae_lens_crosscoder.causal.effects import causal_effects, kl_to_chat
from sae_lens_crosscoder.causal.generation import Responses, generate_patched, generate_responses
from sae_lens_crosscoder.causal.latent_effects import latent_effects, logit_attribution
from sae_lens_crosscoder.causal.patched import patched
from sae_lens_crosscoder.causal.resume import resume_from
from sae_lens_crosscoder.causal.splice import splice_evals
from sae_lens_crosscoder.crosscoders.batchtopk import (
    BatchTopKCrosscoderTrainingConfig,
    BatchTopKTrainingCrosscoder,
)
from sae_lens_crosscoder.crosscoders.inference import (
    InferenceCrosscoder,
    JumpReLUCrosscoder,
    JumpReLUCrosscoderConfig,
    ReLUCrosscoder,
    ReLUCrosscoderConfig,
)
from sae_lens_crosscoder.crosscoders.l1 import L1CrosscoderTrainingConfig, L1TrainingCrosscoder
from sae_lens_crosscoder.crosscoders.registration import register_architectures
from sae_lens_crosscoder.loading.authors_layout import save_dictionary_learning
from sae_lens_crosscoder.loading.foreign_tables import read_foreign_latents
from sae_lens_crosscoder.loading.load import crosscoder_huggingface_loader, load
from sae_lens_crosscoder.models.pair import HookedModelPair
from sae_lens_crosscoder.report import (
    Exploration,
    LatentRecord,
    explore,
    write_effects,
    write_explorer,
    write_report,
)
from sae_lens_crosscoder.stacking import StackedLayout
from sae_lens_crosscoder.training.config import CrosscoderTrainerConfig
from sae_lens_crosscoder.training.edits import edited
from sae_lens_crosscoder.training.plan import plan
from sae_lens_crosscoder.training.runner import CrosscoderTrainingRunner
from sae_lens_crosscoder.training.runner_config import CrosscoderRunnerConfig
from sae_lens_crosscoder.training.stream import train_on_one_stream
from sae_lens_crosscoder.training.trainer import CrosscoderTrainer

register_architectures()

__all__ = [
    "ActivationCache",
    "BatchTopKCrosscoderTrainingConfig",
    "BatchTopKTrainingCrosscoder",
    "ChatTokens",
    "CrosscoderRunnerConfig",
    "CrosscoderTrainer",
    "CrosscoderTrainerConfig",
    "CrosscoderTrainingRunner",
    "Exploration",
    "HookedModelPair",
    "InferenceCrosscoder",
    "JumpReLUCrosscoder",
    "JumpReLUCrosscoderConfig",
    "L1CrosscoderTrainingConfig",
    "L1TrainingCrosscoder",
    "LatentRecord",
    "LatentScaling",
    "NonFiniteError",
    "ReLUCrosscoder",
    "ReLUCrosscoderConfig",
    "Responses",
    "StackedLayout",
    "TokenGroups",
    "activation_divergence",
    "agreement",
    "cache_activations",
    "causal_effects",
    "chat_tokens",
    "collect_examples",
    "correlations",
    "crosscoder_huggingface_loader",
    "decoupled_pairs",
    "delta_norm",
    "diagnose",
    "edited",
    "explore",
    "generate_patched",
    "generate_responses",
    "kl_to_chat",
    "latent_effects",
    "latent_statistics",
    "load",
    "logit_attribution",
    "next_tokens",
    "nu_by_group",
    "patched",
    "plan",
    "read_examples",
    "read_foreign_latents",
    "read_latents",
    "register_architectures",
    "resume_from",
    "save_dictionary_learning",
    "splice_evals",
    "token_groups",
    "token_kl",
    "train_on_one_stream",
    "write_effects",
    "write_explorer",
    "write_latents",
    "write_report",
]
