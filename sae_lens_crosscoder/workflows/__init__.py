"""Run whole analyses: the only layer that joins models, training, analyses and reports."""

from sae_lens_crosscoder.workflows.auditing.audit import audit
from sae_lens_crosscoder.workflows.auditing.config import AuditConfig
from sae_lens_crosscoder.workflows.causal_experiment import CausalConfig, run_causal
from sae_lens_crosscoder.workflows.changed import changed
from sae_lens_crosscoder.workflows.compare import compare
from sae_lens_crosscoder.workflows.demo import DemoConfig, run_demo
from sae_lens_crosscoder.workflows.diagnose_folder import DiagnoseConfig, run_diagnose
from sae_lens_crosscoder.workflows.difference_sae import train_difference_sae
from sae_lens_crosscoder.workflows.explore import explore
from sae_lens_crosscoder.workflows.first_look import first_look
from sae_lens_crosscoder.workflows.look import LookConfig, run_look
from sae_lens_crosscoder.workflows.null_family import NullFamily, NullPair, NullRuns, null_family
from sae_lens_crosscoder.workflows.paper_report import PaperReportConfig, run_paper_report
from sae_lens_crosscoder.workflows.publish import push_to_hub, write_model_card

__all__ = [
    "AuditConfig",
    "CausalConfig",
    "DemoConfig",
    "DiagnoseConfig",
    "LookConfig",
    "NullFamily",
    "NullPair",
    "NullRuns",
    "PaperReportConfig",
    "audit",
    "changed",
    "compare",
    "explore",
    "first_look",
    "null_family",
    "push_to_hub",
    "run_causal",
    "run_demo",
    "run_diagnose",
    "run_look",
    "run_paper_report",
    "train_difference_sae",
    "write_model_card",
]
