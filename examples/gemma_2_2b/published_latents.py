"""The paper's twenty single latents (its tables 3 and 4), measured again on its published crosscoders.

    python examples/gemma_2_2b/published_latents.py --crosscoder batchtopk --conversations chats.jsonl --device cuda

compares nu_error, nu_reconstruction, 1 - Delta_norm, the share on template tokens, and the score on a prompt with the
paper's figures. `chats.jsonl` holds one conversation per line, {"messages": [{"role": ..., "content": ...}, ...]}.
The weights come from the Hub (the two Gemma models after you accept their licence), or from folders.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import simple_parsing
import torch
from torch.nn.utils.rnn import pad_sequence

import sae_lens_crosscoder as slc

PUBLISHED = {
    "batchtopk": "science-of-finetuning/gemma-2-2b-L13-k100-lr1e-04-local-shuffling-CCLoss",
    "l1": "science-of-finetuning/gemma-2-2b-crosscoder-l13-mu4.1e-02-lr1e-04",
}
COMPARED = ["nu_error", "nu_reconstruction", "one_minus_delta_norm", "frac_template", "max_score"]


@dataclass
class Config:
    """What to measure, and on what."""

    conversations: Path
    """A JSON-lines file of conversations; the paper's are of LMSYS-Chat-1M."""
    crosscoder: str = "batchtopk"
    """`batchtopk` or `l1`: which of the two published crosscoders."""
    source: str | None = None
    """A folder with its weights; by default they come from the Hub."""
    base: str = "google/gemma-2-2b"
    chat: str = "google/gemma-2-2b-it"
    hook_name: str = "blocks.13.hook_resid_post"
    model_class_name: str = "HookedTransformer"
    """TransformerBridge for models in local folders."""
    context_size: int = 1024
    """Conversations are cut here."""
    batch_size: int = 4
    device: str = "cpu"
    dtype: str = "bfloat16"
    """Precision of the two language models."""
    output: Path = Path("published_latents.csv")


def compare(cfg: Config) -> pd.DataFrame:
    """A row per published latent, with columns `NAME` (measured) and `NAME_paper`."""
    if cfg.crosscoder not in PUBLISHED:
        raise ValueError(f"crosscoder={cfg.crosscoder!r} is not one of {', '.join(PUBLISHED)}.")
    conversations = [json.loads(line)["messages"] for line in cfg.conversations.read_text("utf-8").splitlines()]
    paper = pd.read_csv(Path(__file__).with_suffix(".csv")).query("crosscoder == @cfg.crosscoder").set_index("latent")
    source = cfg.source or PUBLISHED[cfg.crosscoder]
    crosscoder = slc.load(source, device=cfg.device, hook_name=cfg.hook_name, model_names=(cfg.base, cfg.chat))
    options = {"device": cfg.device, "dtype": cfg.dtype, "model_class_name": cfg.model_class_name}
    pair = slc.HookedModelPair.from_pretrained(cfg.base, cfg.chat, **options)

    measured = _on_conversations(cfg, crosscoder, pair, conversations).loc[paper.index]
    measured["max_score"] = [
        _max_score(crosscoder, pair, prompt, latent) if isinstance(prompt, str) else float("nan")
        for latent, prompt in paper.prompt.items()
    ]
    return measured[COMPARED].join(paper[[*COMPARED, "prompt"]], rsuffix="_paper")


def _on_conversations(
    cfg: Config,
    crosscoder: slc.crosscoders.InferenceCrosscoder,
    pair: slc.HookedModelPair,
    conversations: Sequence[list[dict]],
) -> pd.DataFrame:
    chats = [slc.data.chat_tokens(pair.tokenizer, messages) for messages in conversations]
    groups = slc.data.token_groups(chats, pair.tokenizer)
    groups = slc.data.TokenGroups(groups.labels[:, : cfg.context_size], groups.names)
    tokens = pad_sequence([chat.input_ids for chat in chats], batch_first=True)[:, : cfg.context_size]
    data = slc.EvalData(pair=pair, tokens=tokens, groups=groups, batch_size=cfg.batch_size, max_norm_ratio=None)
    statistics = slc.analysis.latent_statistics(crosscoder, data).table
    # One group of everything but padding: the paper's nu are over all tokens.
    everything = slc.data.TokenGroups(groups.labels.clamp(max=0), ("tokens",))
    nu = slc.analysis.nu_by_group(crosscoder, replace(data, groups=everything))
    table = nu.rename(columns=lambda name: name.removesuffix("_tokens"))
    table["one_minus_delta_norm"] = 1 - slc.delta_norm(crosscoder.decoder_norms).numpy(force=True)
    return table.assign(frac_template=statistics.frac_template)


@torch.no_grad()
def _max_score(
    crosscoder: slc.crosscoders.InferenceCrosscoder, pair: slc.HookedModelPair, prompt: str, latent: int
) -> float:
    chat = slc.data.chat_tokens(pair.tokenizer, [{"role": "user", "content": prompt}], add_generation_prompt=True)
    activations = pair.activations(chat.input_ids[None], crosscoder.cfg.metadata.hook_name)
    return float(crosscoder.encode(activations.to(crosscoder.device, crosscoder.dtype))[..., latent].max())


if __name__ == "__main__":
    cfg = simple_parsing.parse(Config)
    table = compare(cfg)
    table.to_csv(cfg.output)
    print(table.round(3).to_string())
    print(cfg.output)
