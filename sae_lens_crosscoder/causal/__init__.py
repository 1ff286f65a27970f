"""Causal effects of latents: patch, steer and splice activations, and measure the KL between predictions."""

from sae_lens_crosscoder.causal.experiment.effect_sums import EffectSums
from sae_lens_crosscoder.causal.experiment.effects import CausalEffects, causal_effects, kl_to_chat
from sae_lens_crosscoder.causal.experiment.setups import Setup
from sae_lens_crosscoder.causal.forward.answer_rows import answer_rows
from sae_lens_crosscoder.causal.forward.next_tokens import kl_between_models, next_tokens, token_kl
from sae_lens_crosscoder.causal.forward.responses import Responses, generate_responses, given_responses
from sae_lens_crosscoder.causal.forward.resume import resume_from
from sae_lens_crosscoder.causal.ladder.ladder import Ladder, causal_ladder
from sae_lens_crosscoder.causal.latents.latent_effects import latent_effects
from sae_lens_crosscoder.causal.latents.logit_attribution import LogitLens, logit_attribution, logit_lens
from sae_lens_crosscoder.causal.latents.swap_effects import swap_effects
from sae_lens_crosscoder.causal.localisation.changed_prompts import ChangedPrompts, changed_prompts
from sae_lens_crosscoder.causal.localisation.first_look import FirstLook
from sae_lens_crosscoder.causal.localisation.hooks import residual_hooks
from sae_lens_crosscoder.causal.localisation.localisation import Localisation, share_brought_back
from sae_lens_crosscoder.causal.localisation.locate import locate_difference
from sae_lens_crosscoder.causal.localisation.recommendation import Recommendation, recommend
from sae_lens_crosscoder.causal.localisation.steering import SteeringEffects, steering_effects
from sae_lens_crosscoder.causal.patching.generation import generate_patched
from sae_lens_crosscoder.causal.patching.intervention import Intervention, intervention
from sae_lens_crosscoder.causal.patching.patched import patched
from sae_lens_crosscoder.causal.patching.splice import splice_evals
from sae_lens_crosscoder.models.kl import kl_divergence, log_probs

__all__ = [
    "CausalEffects",
    "ChangedPrompts",
    "EffectSums",
    "FirstLook",
    "Intervention",
    "Ladder",
    "Localisation",
    "LogitLens",
    "Recommendation",
    "Responses",
    "Setup",
    "SteeringEffects",
    "answer_rows",
    "causal_effects",
    "causal_ladder",
    "changed_prompts",
    "generate_patched",
    "generate_responses",
    "given_responses",
    "intervention",
    "kl_between_models",
    "kl_divergence",
    "kl_to_chat",
    "latent_effects",
    "locate_difference",
    "log_probs",
    "logit_attribution",
    "logit_lens",
    "next_tokens",
    "patched",
    "recommend",
    "residual_hooks",
    "resume_from",
    "share_brought_back",
    "splice_evals",
    "steering_effects",
    "swap_effects",
    "token_kl",
]
