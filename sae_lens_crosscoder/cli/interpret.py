"""The command `interpret`."""

from collections.abc import Sequence

from sae_lens_crosscoder.analysis.tables.interpretations import save_interpretations
from sae_lens_crosscoder.cli.flags import parse
from sae_lens_crosscoder.interpretation.interpret import interpret
from sae_lens_crosscoder.workflows.interpret_folder import InterpretConfig, prepare_interpretation


def run(args: Sequence[str]) -> None:
    """Explain latents by a language model and score the explanations."""
    cfg = parse(InterpretConfig, args, "interpret")
    cases, answers, cost = prepare_interpretation(cfg)
    print(f"{len(cases.cases):,} latents: {cost}")
    if cfg.dry_run:
        return
    interpretations = interpret(cases, answers, texts_per_prompt=cfg.texts_per_prompt)
    table = interpretations.table
    medians = table[["detection_random", "detection_hard", "fuzzing"]].median()
    print(f"{table.n_unparsable.sum():,} answers could not be parsed. Medians:\n{medians.round(3).to_string()}")
    print(save_interpretations(interpretations, cfg.crosscoder))
