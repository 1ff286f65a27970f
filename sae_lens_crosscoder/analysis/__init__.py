"""Analyses of a trained crosscoder: model-specific latents, artifacts among them, and what they fire on."""

from sae_lens_crosscoder.analysis.answers.behaviour import Behaviour
from sae_lens_crosscoder.analysis.answers.markers import Markers, find_markers
from sae_lens_crosscoder.analysis.answers.phrases import PhraseChange, find_phrases
from sae_lens_crosscoder.analysis.audit.finding import Finding
from sae_lens_crosscoder.analysis.audit.result import Audit
from sae_lens_crosscoder.analysis.baselines.directions import DifferenceDirections
from sae_lens_crosscoder.analysis.baselines.linear import difference_pca, mean_difference
from sae_lens_crosscoder.analysis.baselines.rows import DifferenceRows, difference_rows
from sae_lens_crosscoder.analysis.changed.changed import Changed
from sae_lens_crosscoder.analysis.changed.rho import rho
from sae_lens_crosscoder.analysis.contrasts.concepts import Concepts, concepts
from sae_lens_crosscoder.analysis.decoupling.decoder_pairs import decoupled_pairs
from sae_lens_crosscoder.analysis.decoupling.divergence import activation_divergence
from sae_lens_crosscoder.analysis.diagnosis.classes import CLASS_BORDERS, delta_norm
from sae_lens_crosscoder.analysis.diagnosis.diagnose import diagnose
from sae_lens_crosscoder.analysis.diagnosis.diagnosis import Diagnosis
from sae_lens_crosscoder.analysis.diagnosis.own_probe import with_own_probe
from sae_lens_crosscoder.analysis.examples.collect import collect_examples
from sae_lens_crosscoder.analysis.examples.file import load_examples
from sae_lens_crosscoder.analysis.latent_scaling.latent_scaling import LatentScaling
from sae_lens_crosscoder.analysis.latent_scaling.mse_improvement import TargetEnergies, mse_improvement
from sae_lens_crosscoder.analysis.latent_scaling.nu_by_group import nu_by_group
from sae_lens_crosscoder.analysis.latent_scaling.nu_controls import nu_controls
from sae_lens_crosscoder.analysis.paper.paper_tables import PaperTables, paper_tables
from sae_lens_crosscoder.analysis.statistics.agreement import agreement
from sae_lens_crosscoder.analysis.statistics.artifacts import counts_below, overlap_with_shared, rank_overlap
from sae_lens_crosscoder.analysis.statistics.correlations import correlations
from sae_lens_crosscoder.analysis.statistics.dictionaries import DictionaryComparison, compare_dictionaries
from sae_lens_crosscoder.analysis.statistics.difference import DifferenceShares, difference_shares
from sae_lens_crosscoder.analysis.statistics.latent_statistics import LatentStatistics, latent_statistics
from sae_lens_crosscoder.analysis.statistics.profiles import ActivationProfiles, activation_profiles
from sae_lens_crosscoder.analysis.tables.interpretations import Interpretations, save_interpretations
from sae_lens_crosscoder.analysis.tables.user_labels import load_labels, save_label
from sae_lens_crosscoder.analysis.use.latent_use import latent_use, latent_uses
from sae_lens_crosscoder.analysis.use.result import LatentUse
from sae_lens_crosscoder.analysis.weights.diagnose_weights import diagnose_weights
from sae_lens_crosscoder.analysis.weights.result import WeightDiagnosis

__all__ = [
    "CLASS_BORDERS",
    "ActivationProfiles",
    "Audit",
    "Behaviour",
    "Changed",
    "Concepts",
    "Diagnosis",
    "DictionaryComparison",
    "DifferenceDirections",
    "DifferenceRows",
    "DifferenceShares",
    "Finding",
    "Interpretations",
    "LatentScaling",
    "LatentStatistics",
    "LatentUse",
    "Markers",
    "PaperTables",
    "PhraseChange",
    "TargetEnergies",
    "WeightDiagnosis",
    "activation_divergence",
    "activation_profiles",
    "agreement",
    "collect_examples",
    "compare_dictionaries",
    "concepts",
    "correlations",
    "counts_below",
    "decoupled_pairs",
    "delta_norm",
    "diagnose",
    "diagnose_weights",
    "difference_pca",
    "difference_rows",
    "difference_shares",
    "find_markers",
    "find_phrases",
    "latent_statistics",
    "latent_use",
    "latent_uses",
    "load_examples",
    "load_labels",
    "mean_difference",
    "mse_improvement",
    "nu_by_group",
    "nu_controls",
    "overlap_with_shared",
    "paper_tables",
    "rank_overlap",
    "rho",
    "save_interpretations",
    "save_label",
    "with_own_probe",
]
