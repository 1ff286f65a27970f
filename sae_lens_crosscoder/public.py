"""The public names at the top level; importing this module registers the architectures with SAELens."""

from sae_lens_crosscoder import planning
from sae_lens_crosscoder.activations.cache.reader import ActivationCache
from sae_lens_crosscoder.activations.cache.writer import cache_activations
from sae_lens_crosscoder.activations.harvest import NonFiniteError
from sae_lens_crosscoder.analysis.decoupling.decoder_pairs import decoupled_pairs
from sae_lens_crosscoder.analysis.decoupling.divergence import activation_divergence
from sae_lens_crosscoder.analysis.diagnosis.delta_norm import delta_norm
from sae_lens_crosscoder.analysis.diagnosis.diagnose import diagnose
from sae_lens_crosscoder.analysis.examples.collect import collect_examples
from sae_lens_crosscoder.analysis.examples.file import read_examples
from sae_lens_crosscoder.analysis.latent_scaling.latent_scaling import LatentScaling
from sae_lens_crosscoder.analysis.latent_scaling.mse_improvement import TargetEnergies, mse_improvement
from sae_lens_crosscoder.analysis.latent_scaling.nu_by_group import nu_by_group
from sae_lens_crosscoder.analysis.latent_scaling.nu_controls import nu_controls
from sae_lens_crosscoder.analysis.paper.paper_tables import PaperTables, paper_tables
from sae_lens_crosscoder.analysis.statistics.agreement import agreement
from sae_lens_crosscoder.analysis.statistics.artifacts import counts_below, overlap_with_shared, rank_overlap
from sae_lens_crosscoder.analysis.statistics.correlations import correlations
from sae_lens_crosscoder.analysis.statistics.difference import difference_shares
from sae_lens_crosscoder.analysis.statistics.latent_statistics import latent_statistics
from sae_lens_crosscoder.analysis.tables.latents_file import read_latents, write_interpretations, write_latents
from sae_lens_crosscoder.analysis.tables.user_labels import read_labels, write_label
from sae_lens_crosscoder.causal import (
    Responses,
    causal_effects,
    generate_patched,
    generate_responses,
    given_responses,
    kl_to_chat,
    latent_effects,
    logit_attribution,
    next_tokens,
    patched,
    resume_from,
    splice_evals,
    token_kl,
)
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
from sae_lens_crosscoder.data.chat_tokens import ChatTokens, chat_tokens
from sae_lens_crosscoder.data.labelled_rows import LabelledRows, labelled_rows
from sae_lens_crosscoder.data.mix import DataMix, MixSource
from sae_lens_crosscoder.data.token_groups import TokenGroups, token_groups
from sae_lens_crosscoder.interpretation import (
    Answers,
    CallableClient,
    EndpointClient,
    LocalClient,
    interpret,
    interpretation_cases,
    interpretation_cost,
    sentence_embedder,
)
from sae_lens_crosscoder.loading.formats.dictionary_learning_export import save_dictionary_learning
from sae_lens_crosscoder.loading.formats.latent_tables import read_foreign_latents
from sae_lens_crosscoder.loading.load import crosscoder_huggingface_loader, load
from sae_lens_crosscoder.models.pair import HookedModelPair
from sae_lens_crosscoder.models.token_replacements import TOKEN_REPLACEMENTS
from sae_lens_crosscoder.report import (
    Comparison,
    Exploration,
    LatentRecord,
    LatentView,
    latent,
    write_effects,
    write_explorer,
    write_neuronpedia,
    write_report,
)
from sae_lens_crosscoder.stacking import StackedLayout
from sae_lens_crosscoder.training.loop import CrosscoderTrainer, train_together
from sae_lens_crosscoder.training.runner import CrosscoderTrainingRunner
from sae_lens_crosscoder.training.runner_config import CrosscoderRunnerConfig
from sae_lens_crosscoder.training.trainer_config import CrosscoderTrainerConfig
from sae_lens_crosscoder.workflows.compare import compare
from sae_lens_crosscoder.workflows.explore import explore
from sae_lens_crosscoder.workflows.paper_report import paper_report
from sae_lens_crosscoder.workflows.publish import push_to_hub, write_model_card

register_architectures()

__all__ = [
    "TOKEN_REPLACEMENTS",
    "ActivationCache",
    "Answers",
    "BatchTopKCrosscoderTrainingConfig",
    "BatchTopKTrainingCrosscoder",
    "CallableClient",
    "ChatTokens",
    "Comparison",
    "CrosscoderRunnerConfig",
    "CrosscoderTrainer",
    "CrosscoderTrainerConfig",
    "CrosscoderTrainingRunner",
    "DataMix",
    "EndpointClient",
    "Exploration",
    "HookedModelPair",
    "InferenceCrosscoder",
    "JumpReLUCrosscoder",
    "JumpReLUCrosscoderConfig",
    "L1CrosscoderTrainingConfig",
    "L1TrainingCrosscoder",
    "LabelledRows",
    "LatentRecord",
    "LatentScaling",
    "LatentView",
    "LocalClient",
    "MixSource",
    "NonFiniteError",
    "PaperTables",
    "ReLUCrosscoder",
    "ReLUCrosscoderConfig",
    "Responses",
    "StackedLayout",
    "TargetEnergies",
    "TokenGroups",
    "activation_divergence",
    "agreement",
    "cache_activations",
    "causal_effects",
    "chat_tokens",
    "collect_examples",
    "compare",
    "correlations",
    "counts_below",
    "crosscoder_huggingface_loader",
    "decoupled_pairs",
    "delta_norm",
    "diagnose",
    "difference_shares",
    "explore",
    "generate_patched",
    "generate_responses",
    "given_responses",
    "interpret",
    "interpretation_cases",
    "interpretation_cost",
    "kl_to_chat",
    "labelled_rows",
    "latent",
    "latent_effects",
    "latent_statistics",
    "load",
    "logit_attribution",
    "mse_improvement",
    "next_tokens",
    "nu_by_group",
    "nu_controls",
    "overlap_with_shared",
    "paper_report",
    "paper_tables",
    "patched",
    "planning",
    "push_to_hub",
    "rank_overlap",
    "read_examples",
    "read_foreign_latents",
    "read_labels",
    "read_latents",
    "register_architectures",
    "resume_from",
    "save_dictionary_learning",
    "sentence_embedder",
    "splice_evals",
    "token_groups",
    "token_kl",
    "train_together",
    "write_effects",
    "write_explorer",
    "write_interpretations",
    "write_label",
    "write_latents",
    "write_model_card",
    "write_neuronpedia",
    "write_report",
]
