"""causal_ladder: adds what the named latents write to the base model, and reads how far it then does as chat does."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.causal.ladder.edits import (
    Conditions,
    Edit,
    biases_of,
    constant,
    noise,
    of_same_energy,
    total,
    true_difference,
    written_by,
)
from sae_lens_crosscoder.causal.ladder.run import PER_PLACE, LadderRun
from sae_lens_crosscoder.causal.patching.validation import validate_handover
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder, validate_inference
from sae_lens_crosscoder.crosscoders.two_models import TwoModels
from sae_lens_crosscoder.data.contrasts import Contrast
from sae_lens_crosscoder.models.pair import HookedModelPair
from sae_lens_crosscoder.storage.atomic import write_text_atomically
from sae_lens_crosscoder.storage.json_files import load_json

RUNGS = (1, 3, 5, 10, 20)
_FILE = "ladder.json"
_ON_OTHERS = ("base", "chat", "named", PER_PLACE)


@dataclass(frozen=True)
class Ladder:
    """Effects of edits of the base model, a row per condition."""

    table: pd.DataFrame
    """Index `condition`. `kl_nats` is the KL from the chat model's prediction of the answer's first token,
    `brought_back` the share of it that the edit removes, `rate` how often the answers to held-out positive prompts show
    the behaviour, `rate_others` the same for held-out negative prompts (nan where it was not measured), `n_latents` the
    number of latents that write, `answer` the first answer."""

    def save(self, folder: str | Path) -> Path:
        """Save the table as `ladder.json` in a folder."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        records = self.table.reset_index().to_dict("records")
        # Not `to_json`, which rounds: a resumed audit is to read the numbers of the first run.
        rows = [{name: value if value == value else None for name, value in row.items()} for row in records]
        write_text_atomically(json.dumps({"rows": rows}, indent=1), Path(folder, _FILE))
        return Path(folder, _FILE)

    @classmethod
    def load(cls, folder: str | Path) -> "Ladder":
        """Load what `save` wrote."""
        table = pd.DataFrame(load_json(Path(folder, _FILE))["rows"]).set_index("condition")
        numbers = ["kl_nats", "brought_back", "rate", "rate_others"]
        return cls(table.astype(dict.fromkeys(numbers, float)))


@validate_arguments
def causal_ladder(
    crosscoder: InferenceCrosscoder,
    pair: HookedModelPair,
    contrast: Contrast,
    latent_ids: Sequence[int],
    shows_behaviour: Callable[[str], bool],
    *,
    models: Sequence[str] | None = None,
    rungs: Sequence[int] = RUNGS,
    only: Sequence[str] | None = None,
    n_draws: int = 2,
    max_new_tokens: int = 24,
    seed: int = 0,
    batch_size: int = 32,
) -> Ladder:
    """Add the named latents to the base model one after the other, and see whether it shows the behaviour.

    The base model's activation is edited at the decision token and at every later token of its answer. Activations of
    latents are computed from both models on the same tokens. Conditions: `base`, `biases`, biases with the `first N`
    latents and with all (`named`), `named without biases`; as controls, biases with random active latents or noise,
    both rescaled token by token to the length that the named latents write; `all but named`, the difference without
    what they and the biases write; `mean difference` at the decision, added everywhere; `mean difference per place` of
    the answer; the `true difference`; `chat`.

    Args:
        contrast: positive prompts show the behaviour in the chat model. Means and active latents are taken from the
            prompts that are not held out, effects are measured on those that are.
        latent_ids: the named latents, the strongest first, such as `changed(...).named`.
        shows_behaviour: True for the text of an answer that shows the behaviour.
        models: names of two models, the first of which takes the place of base and the second that of chat; needed for
            more than two.
        rungs: numbers of latents to add.
        only: the conditions to measure, by name or by its beginning (`random latents`), beside `base` and `chat`; None
            for all.
        n_draws: draws of each random control.
        max_new_tokens: tokens per answer; an answer ends earlier at the tokenizer's end of sequence.

    Raises:
        ValueError: for another pair, more than two models without `models`, two of different width, no tokenizer, no
            latents, or an unknown condition.
    """
    crosscoder = validate_inference(crosscoder, "causal_ladder")
    two = TwoModels.of(crosscoder, models, "causal_ladder")
    validate_handover(two, pair)
    if pair.tokenizer is None:
        raise ValueError("The pair has no tokenizer, so answers have no text. Load models with their tokenizer.")
    if len(latent_ids) == 0:
        raise ValueError("latent_ids is empty. Pass at least one latent, such as those of changed(...).named.")
    run = LadderRun(two, pair, contrast, shows_behaviour, max_new_tokens, batch_size)
    edits = {
        **_rungs(two, list(latent_ids), rungs),
        **_controls(two, list(latent_ids), run.active_latents(), n_draws, seed),
        **run.mean_differences(per_place=only is None or PER_PLACE in only),
        "true difference": (true_difference(two), 0),
    }
    conditions: dict[str, tuple[Edit | None, int]] = {"base": (None, 0), **_chosen(edits, only), "chat": (None, 0)}
    writers = {name: two.names[name == "chat"] for name in conditions}
    asked = {name: (edit, writers[name]) for name, (edit, _) in conditions.items()}
    effects = run.effects(asked, [name for name in conditions if name in _ON_OTHERS])
    rows = {name: {"n_latents": n, **effects[name]} for name, (_, n) in conditions.items()}
    rows["chat"]["kl_nats"] = 0.0
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("condition")
    kl = table["kl_nats"].to_numpy(dtype=float)
    table.insert(2, "brought_back", 1 - kl / kl[0])
    return Ladder(table)


def _chosen(conditions: Conditions, only: Sequence[str] | None) -> Conditions:
    if only is None:
        return conditions
    if unknown := [name for name in only if not any(condition.startswith(name) for condition in conditions)]:
        raise ValueError(f"only={unknown} are no conditions. Choose from {list(conditions)}.")
    # A whole name is meant alone: `named` is not `named without biases`.
    beginnings = tuple(name for name in only if name not in conditions)
    return {name: edit for name, edit in conditions.items() if name in only or name.startswith(beginnings)}


def _rungs(two: TwoModels, ids: list[int], rungs: Sequence[int]) -> Conditions:
    biases = constant(biases_of(two)[None])
    found: dict[str, tuple[Edit, int]] = {"biases": (biases, 0)}
    for n in rungs:
        if n < len(ids):
            found[f"first {n}"] = (total(biases, written_by(two, ids[:n])), n)
    named = written_by(two, ids)
    found["named"] = (total(biases, named), len(ids))
    found["named without biases"] = (named, len(ids))
    rest = total(true_difference(two), biases, named, signs=(1, -1, -1))
    return {**found, "all but named": (rest, 0)}


def _controls(two: TwoModels, ids: list[int], active: Int[Tensor, " latent"], n_draws: int, seed: int) -> Conditions:
    """Random active latents that are not named, and noise, of the energy of the named ones."""
    biases, named = constant(biases_of(two)[None]), written_by(two, ids)
    others = active[~torch.isin(active, torch.tensor(ids))]
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, tuple[Edit, int]] = {}
    for draw in range(n_draws):
        # At most half of them, so that draws differ.
        n = max(1, min(len(ids), len(others) // 2))
        drawn = others[torch.randperm(len(others), generator=generator)[:n]].tolist()
        if drawn:
            random = of_same_energy(named, written_by(two, drawn))
            found[f"random latents {draw}"] = (total(biases, random), len(drawn))
        found[f"noise {draw}"] = (total(biases, of_same_energy(named, noise(two, seed + draw))), 0)
    return found
