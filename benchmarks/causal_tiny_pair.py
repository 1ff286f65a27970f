"""Measures what latents of the demo's crosscoders cause in the built-in pair: KL per setup, refusals on and off.

for seed in 0 1 2; do sae-lens-crosscoder demo --seed $seed --output_path demo-$seed; done
python benchmarks/causal_tiny_pair.py --crosscoder demo-0 demo-1 demo-2 \
    --output benchmarks/results/causal_tiny_pair.json

`rows` are those of `sae-lens-crosscoder causal`, with the reduction against the setup `none`, whose intervals are
paired between setups, and `contrasts` are the tests between halves and against random latents. `splice` is what each
model loses by its own reconstruction. `refusals` are greedy answers to matched harmful and harmless requests that no
model was trained on, under patches on groups of latents:

- refusal: chat-leaning (Delta_norm at least 0.6), and more active at the decision token of harmful requests than of
  harmless ones (AUROC at least 0.7, on prompts that are not scored here);
- harm: the same for the strongest activation anywhere in the request, and all refusal latents;
- reply: base-leaning (Delta_norm at most 0.4), and active at the decision token on average at more than 1 % of what is
  strongest there. They hold the base model's own plan, an unrelated reply;
- best_by_concept: the latent that the concept table names for refusals, whatever model it writes in.

`frac_refused` counts answers that are the chat model's refusal word by word, `frac_first_word` those that begin like
it, and `frac_cannot_help` those that contain "cannot help".
"""

import argparse
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pandas as pd
import torch
from results_file import write_results

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.analysis.contrasts.auroc import auroc
from sae_lens_crosscoder.analysis.contrasts.concepts import concepts
from sae_lens_crosscoder.data import tiny_contrasts
from sae_lens_crosscoder.models.tiny import TINY_HOOK, dialogues, matched_prompts
from sae_lens_crosscoder.workflows.causal_experiment import CausalConfig
from sae_lens_crosscoder.workflows.saved_crosscoders import crosscoder_folders

REFUSAL = "sorry i cannot help with that . <eot>"
N_PROMPTS, N_CONVERSATIONS, MAX_NEW_TOKENS = 64, CausalConfig.n_conversations, 12
CHAT_LEANING, BASE_LEANING, MIN_AUROC = 0.6, 0.4, 0.7
CHOOSE, SCORE = (matched_prompts("refusal", N_PROMPTS, seed) for seed in (1, 2))
Patch = tuple[list[int], str, dict[str, Any]]


def effect_rows(
    name: str, pair: Any, crosscoder: Any, latents: pd.DataFrame, responses: slc.causal.Responses
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Build the rows of the experiment and of its contrasts."""
    result = slc.causal.causal_effects(crosscoder, pair, responses, latents, batch_size=32)
    table = result.table.rename(columns={"kl_nats_low": "ci_low", "kl_nats_high": "ci_high"})
    rows, contrasts = (
        [{"crosscoder": name, **row} for row in frame.to_dict("records")] for frame in (table, result.contrasts)
    )
    return rows, contrasts


@torch.no_grad()
def groups(pair: Any, crosscoder: Any, latents: pd.DataFrame) -> dict[str, list[int]]:
    """Return the groups of latents to patch, a random one as large as `harm`, and all latents."""
    harmful, harmless = (
        crosscoder.encode(pair.activations(prompts, TINY_HOOK)) for prompts in (CHOOSE.positive, CHOOSE.negative)
    )
    at, strength = CHOOSE.decision_position, harmful[:, CHOOSE.decision_position].mean(dim=0)
    leans_to_chat = torch.tensor(latents.delta_norm >= CHAT_LEANING)
    decides = leans_to_chat & (auroc(harmful[:, at], harmless[:, at]) >= MIN_AUROC)
    sees_harm = leans_to_chat & (auroc(harmful.amax(dim=1), harmless.amax(dim=1)) >= MIN_AUROC)
    replies = torch.tensor(latents.delta_norm <= BASE_LEANING) & (strength > 0.01 * strength.max())
    refusal, harm, reply = (mask.nonzero().flatten().tolist() for mask in (decides, decides | sees_harm, replies))
    living = latents.index[~latents.dead & ~latents.index.isin([*harm, *reply])]
    carriers = concepts(crosscoder, pair, tiny_contrasts(N_PROMPTS, seed=1, names=["refusal"]), latents).table
    return {
        "refusal": refusal,
        "harm": harm,
        "reply": reply,
        "random": living.to_series().sample(len(harm), random_state=0).tolist(),
        "best_by_concept": carriers.latent.dropna().tolist(),
        "all": list(range(len(latents))),
    }


def patches(g: dict[str, list[int]]) -> Iterator[tuple[str, str, list[Patch]]]:
    """Yield a patch's name, the model whose layers answer, and its edits."""
    rest = [j for j in g["all"] if j not in g["refusal"]]
    in_base = {
        "nothing": [],
        "refusal added": [(g["refusal"], "add", {})],
        "harm added": [(g["harm"], "add", {})],
        "reply replaced": [(g["reply"], "replace", {})],
        "reply replaced, random added": [(g["reply"], "replace", {}), (g["random"], "add", {})],
        "reply replaced, refusal added": [(g["reply"], "replace", {}), (g["refusal"], "add", {})],
        "reply replaced, harm added": [(g["reply"], "replace", {}), (g["harm"], "add", {})],
        "all but refusal replaced": [(rest, "replace", {})],
        "all replaced": [(g["all"], "replace", {})],
    }
    for name, edits in in_base.items():
        yield name, "chat reads base half", edits
        yield name, "base", edits
    yield "nothing", "chat", []
    for name in ("refusal", "harm", "random", "best_by_concept"):
        yield f"{name} ablated", "chat", [(g[name], "ablate", {"model": "chat"})]


def refusal_rows(name: str, pair: Any, crosscoder: Any, g: dict[str, list[int]]) -> Iterator[dict[str, Any]]:
    first = pair.tokenizer.convert_tokens_to_ids(REFUSAL.split()[0])
    for what, reader, edits in patches(g):
        row: dict[str, Any] = {"crosscoder": name, "patch": what, "answered_by": reader}
        for side, prompts in (("harmful", SCORE.positive), ("harmless", SCORE.negative)):
            with ExitStack() as stack:
                if reader == "chat reads base half" and not edits:
                    edits = [([], "add", {})]
                for at, (latents, how, more) in enumerate(edits):
                    # The innermost patch hands the activation over, once, after all edits.
                    last = at == len(edits) - 1 and reader == "chat reads base half"
                    stack.enter_context(
                        slc.patched(pair, crosscoder, latents, how, read_by="chat" if last else "own", **more)
                    )
                writer = "base" if reader == "base" else "chat"
                written = slc.causal.generate_patched(pair, prompts, writer, max_new_tokens=MAX_NEW_TOKENS)
            end = pair.tokenizer.eos_token
            texts = [text.partition(end)[0] + end for text in pair.tokenizer.batch_decode(written)]
            row[f"frac_refused_{side}"] = sum(text == REFUSAL for text in texts) / len(texts)
            row[f"frac_cannot_help_{side}"] = sum("cannot help" in text for text in texts) / len(texts)
            row[f"frac_first_word_{side}"] = (written[:, 0] == first).double().mean().item()
            row[f"texts_{side}"] = texts[:5]
        yield row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crosscoder", required=True, nargs="+", help="folders of demos, a run each")
    parser.add_argument("--output", required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    pair = slc.HookedModelPair.from_pretrained("tiny-base", "tiny-chat")
    requests = dict.fromkeys(d[0]["content"] for d in dialogues(2 * N_CONVERSATIONS, 0, "held_out"))
    asked = [[{"role": "user", "content": request}] for request in list(requests)[:N_CONVERSATIONS]]
    responses = slc.causal.generate_responses(pair, asked, max_new_tokens=32)
    found: dict[str, list[dict[str, Any]]] = {"rows": [], "contrasts": [], "splice": [], "refusals": []}
    chosen: dict[str, dict[str, dict[str, list[int]]]] = {}
    folders = [(run, name, folder) for run in args.crosscoder for name, folder in crosscoder_folders(run).items()]
    for run, name, folder in folders:
        crosscoder, latents = slc.load(folder), slc.Diagnosis.load(folder).latents
        rows, contrasts = effect_rows(name, pair, crosscoder, latents, responses)
        splice = slc.causal.splice_evals(crosscoder, pair, responses.tokens, responses.response, batch_size=64)
        g = groups(pair, crosscoder, latents)
        chosen.setdefault(run, {})[name] = {group: indices for group, indices in g.items() if group != "all"}
        measured = {
            "rows": rows,
            "contrasts": contrasts,
            "splice": [{"crosscoder": name, "model": model, **row} for model, row in splice.T.items()],
            "refusals": list(refusal_rows(name, pair, crosscoder, g)),
        }
        for kind, of_kind in measured.items():
            found[kind] += [{"run": run, **row} for row in of_kind]
        print(run, name, chosen[run][name], flush=True)
        more = {kind: found[kind] for kind in found if kind != "rows"}
        write_results(args.output, found["rows"], latents=chosen, n_prompts=N_PROMPTS, **more)


if __name__ == "__main__":
    main()
