"""Plan a training run before anything is loaded: memory, disk, time, and config changes that make it fit."""

from sae_lens_crosscoder.planning.memory import MemoryItem
from sae_lens_crosscoder.planning.plan import Plan, plan
from sae_lens_crosscoder.planning.suggestions import Suggestion
from sae_lens_crosscoder.planning.timing import TimeEstimate

__all__ = ["MemoryItem", "Plan", "Suggestion", "TimeEstimate", "plan"]
