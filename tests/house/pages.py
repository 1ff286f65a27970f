"""The pages that users read: the README and the documentation, with their fences and what the fences need to run."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.models.tiny import TINY_HOOK, dialogues, tiny_dataset, tiny_tokenizer
from tests.models.small_models import gemma2, save_pair

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), ROOT / "examples/gemma_2_2b/README.md", *sorted((ROOT / "docs").rglob("*.md"))]
WRITTEN_PAGES = [page for page in PAGES if page.parent.name != "tutorials"]
FENCE = re.compile(r"(?:^<!-- no-run: (?P<reason>[^\n]+) -->\n)?^```(?P<language>\w+)\n(?P<code>.*?)^```$", re.M | re.S)

# The modules that each page of the reference shows. Pages also name functions that share the name of their module.
REFERENCE = {
    path: [match["module"] for match in re.finditer(r"^::: (?!\S+\.(\w+)\.\1$)(?P<module>\S+)", path.read_text(), re.M)]
    for path in sorted((ROOT / "docs/api").glob("*.md"))
}

# Pages show the paper's pair and sizes that mean something. Tests run the same code on the built-in pair, and briefly.
SCALED_DOWN = {
    r'"google/gemma-2-2b-it"': '"tiny-chat"',
    r'"google/gemma-2-2b(?P<jitter>\+jitter=[\d.]+)?"': r'"tiny-base\g<jitter>"',
    r'"blocks\.13\.hook_resid_post"': f'"{TINY_HOOK}"',
    r"\bd_model=2304\b": "d_model=96",
    r"\bd_sae=[\d_]+": "d_sae=128",
    r"\bk=64\b": "k=8",
    r"\bcontext_size=1024\b": "context_size=64",
    r"\btraining_tokens=50_000_000\b": (
        "training_tokens=40 * 256, train_batch_size_tokens=256, lr_warm_up_steps=5, n_held_out_rows=64, "
        "dead_feature_window=20, log_frequency=10, checkpoint_path=None"
    ),
    r'"cuda"': '"cpu"',
    r'"bfloat16"': '"float32"',
}


@dataclass(frozen=True)
class Fence:
    """One code fence of a page."""

    language: str
    code: str
    no_run: str | None
    """Why it does not run in tests."""


def public_modules():
    """The modules in the reference, whose `__all__` is public."""
    return [module for modules in REFERENCE.values() for module in modules]


def fences(page, language):
    """The fences of one language on a page, in order."""
    found = [Fence(match["language"], match["code"], match["reason"]) for match in FENCE.finditer(page.read_text())]
    return [fence for fence in found if fence.language == language]


def scaled_down(code):
    """Return the code for the built-in pair, with a run of seconds."""
    for pattern, replacement in SCALED_DOWN.items():
        code = re.sub(pattern, lambda match, text=replacement: match.expand(text) if "jitter" in text else text, code)
    return code


def make_workspace(folder):
    """Write the files that pages use: texts, chats, local models, and a crosscoder with its null run."""
    chats = [json.dumps({"messages": messages}) for messages in dialogues(1000, seed=1)]
    (folder / "chats.jsonl").write_text("\n".join(chats) + "\n")
    ids = list(tiny_dataset(400, seed=1, mix="base")["input_ids"])
    texts = tiny_tokenizer().batch_decode(ids, skip_special_tokens=True)
    (folder / "web.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts) + "\n")
    (folder / "models").mkdir()
    for name, saved in zip(("my-base", "my-chat"), save_pair(folder / "models", gemma2), strict=True):
        Path(saved).rename(folder / name)
    for name, chat in (("crosscoder", "tiny-chat"), ("null", "tiny-base+jitter=0.02")):
        runner = slc.CrosscoderTrainingRunner(
            slc.CrosscoderRunnerConfig(
                sae=slc.BatchTopKCrosscoderTrainingConfig(d_model=96, d_sae=128, k=8),
                model_name="tiny-base",
                chat_model_name=chat,
                hook_name=TINY_HOOK,
                dataset_path="tiny-mix",
                context_size=64,
                training_tokens=60 * 256,
                train_batch_size_tokens=256,
                lr=5e-3,
                lr_warm_up_steps=5,
                dead_feature_window=20,
                log_frequency=10,
                checkpoint_path=None,
                output_path=str(folder / name),
            )
        )
        slc.diagnose(runner.run(), runner.held_out_data()).save(folder / name)


def namespace():
    """Return what pages take as given: held-out tokens, prompts of two kinds, and a null pair."""
    tokens = torch.tensor(tiny_dataset(64, seed=5)["input_ids"])
    null_pair = slc.HookedModelPair.from_pretrained("tiny-base", "tiny-base+jitter=0.02")
    triggers, others = ([messages[0]["content"] for messages in dialogues(44, seed=seed)] for seed in (7, 8))
    prompts = {"triggers": triggers, "other_prompts": others}
    return {"__name__": "page", "held_out_tokens": tokens, "null_pair": null_pair, **prompts}
