"""No code that comes with a model runs, whoever asks for it and however the host is inclined."""

import json

import pytest
import torch
from transformer_lens.loading_from_pretrained import NEED_REMOTE_CODE_MODELS
from transformer_lens.model_bridge import TransformerBridge

from sae_lens_crosscoder.models import loading
from sae_lens_crosscoder.models.loading import MODEL_CLASSES, load_model


@pytest.mark.parametrize("name", ["Qwen/Qwen3-0.6B", "qwen3-0.6b", "phi-2", "microsoft/phi-2"])
def test_models_for_which_the_host_turns_remote_code_on_are_loaded_by_the_bridge_without_it(name, monkeypatch, caplog):
    booted, model = [], torch.nn.Linear(1, 1)
    monkeypatch.setattr(loading, "load_host_model", lambda *args, **kwargs: pytest.fail("asked the host"))
    monkeypatch.setattr(
        TransformerBridge, "boot_transformers", lambda *args, **kwargs: booted.append((args, kwargs)) or model
    )
    assert load_model(name, "cpu", "float32", "HookedTransformer", {"center_writing_weights": False}) is model
    assert booted == [((name,), {"device": "cpu", "dtype": torch.float32})]
    assert f"HookedTransformer would run code that comes with {name!r}" in caplog.text
    assert "microsoft/phi-2" in NEED_REMOTE_CODE_MODELS


@pytest.mark.parametrize("model_class_name", MODEL_CLASSES)
@pytest.mark.parametrize("name", ["google/gemma-2-2b", "tiny-base", "tiny-base+jitter=0.1"])
def test_remote_code_cannot_be_asked_for(name, model_class_name, monkeypatch):
    monkeypatch.setattr(loading, "load_host_model", lambda *args, **kwargs: pytest.fail("asked the host"))
    with pytest.raises(ValueError, match="trust_remote_code=True would run code that comes with"):
        load_model(name, "cpu", "float32", model_class_name, {"trust_remote_code": True})


@pytest.mark.parametrize("model_class_name", ["TransformerBridge", "AutoModelForCausalLM"])
def test_code_beside_a_model_does_not_run_even_if_whoever_is_asked_says_yes(tmp_path, model_class_name, monkeypatch):
    mark = tmp_path / "ran"
    code = f"from pathlib import Path\nPath({str(mark)!r}).touch()\nclass C: pass\n"
    (tmp_path / "theirs.py").write_text(code)
    auto_map = {"AutoConfig": "theirs.C", "AutoModelForCausalLM": "theirs.C"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "theirs", "auto_map": auto_map}))
    monkeypatch.setattr("builtins.input", lambda *args: "y")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    with pytest.raises(ValueError, match="trust_remote_code"):
        load_model(str(tmp_path), "cpu", "float32", model_class_name, {})
    assert not mark.exists()
