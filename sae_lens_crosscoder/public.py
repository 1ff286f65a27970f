"""The public names at the top level; importing this module registers the architectures with SAELens."""

from sae_lens_crosscoder import planning
from sae_lens_crosscoder.activations.cache.reader import ActivationCache
from sae_lens_crosscoder.activations.cache.writer import cache_activations
from sae_lens_crosscoder.activations.eval_data import EvalData
from sae_lens_crosscoder.activations.harvest import NonFiniteError
from sae_lens_crosscoder.analysis import (
    Diagnosis,
    Interpretations,
    LatentScaling,
    PaperTables,
    TargetEnergies,
    activation_divergence,
    agreement,
    collect_examples,
    correlations,
    counts_below,
    decoupled_pairs,
    delta_norm,
    diagnose,
    difference_shares,
    latent_statistics,
    load_examples,
    load_labels,
    mse_improvement,
    nu_by_group,
    nu_controls,
    overlap_with_shared,
    paper_tables,
    rank_overlap,
    save_interpretations,
    save_label,
)
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
from sae_lens_crosscoder.loading import formats as convert
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
    "Diagnosis",
    "EndpointClient",
    "EvalData",
    "Exploration",
    "HookedModelPair",
    "InferenceCrosscoder",
    "Interpretations",
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
    "convert",
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
    "load_examples",
    "load_labels",
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
    "register_architectures",
    "resume_from",
    "save_interpretations",
    "save_label",
    "sentence_embedder",
    "splice_evals",
    "token_groups",
    "token_kl",
    "train_together",
    "write_effects",
    "write_explorer",
    "write_model_card",
    "write_neuronpedia",
    "write_report",
]
