"""Keys reach neither a config nor a message, however they come in."""

import pytest

import sae_lens_crosscoder as slc
from sae_lens_crosscoder import cli
from sae_lens_crosscoder.storage.secrets import redact_secrets, validate_no_secrets

KEYS = {
    "HF_TOKEN": "hf_" + "AbC9" * 8,
    "WANDB_API_KEY": "0123456789abcdef" * 2 + "01234567",
    "OPENAI_API_KEY": "sk-proj-" + "x_Y-" * 8,
    "MY_SERVICE_API_KEY": "correct horse",
}


@pytest.fixture
def environment(monkeypatch):
    for name, key in KEYS.items():
        monkeypatch.setenv(name, key)


def config(**fields):
    sae = slc.BatchTopKCrosscoderTrainingConfig(d_model=8, d_sae=16, k=4)
    return slc.CrosscoderRunnerConfig(**{"sae": sae, "training_tokens": 2**22, **fields})


@pytest.mark.parametrize("name", KEYS)
def test_a_key_of_the_environment_is_refused_in_any_field_and_not_repeated(environment, name):
    hidden = f"https://user:{KEYS[name]}@host/data"
    for field, fields in {
        "dataset_path": {"dataset_path": hidden},
        "model_from_pretrained_kwargs.proxies.a": {"model_from_pretrained_kwargs": {"proxies": {"a": [hidden]}}},
        "model_name": {"model_name": hidden},
    }.items():
        with pytest.raises(ValueError, match=f"^{field} contains a key, but configs are saved and logged") as caught:
            config(**fields)
        assert KEYS[name] not in str(caught.value)


@pytest.mark.parametrize("field", ["token", "use_auth_token", "hf_token", "api_key", "OPENAI_API_KEY", "password"])
def test_a_field_for_a_key_is_refused_whatever_it_holds(field):
    with pytest.raises(ValueError, match=f"model_from_pretrained_kwargs.{field} contains a key") as caught:
        config(model_from_pretrained_kwargs={field: "abc"})
    assert "abc" not in str(caught.value)


def test_a_key_that_is_not_in_the_environment_is_known_by_its_looks(monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(ValueError, match="dataset_path contains a key"):
        validate_no_secrets({"dataset_path": f"x?token={KEYS['HF_TOKEN']}"})


def test_ordinary_configs_have_no_keys(environment):
    cfg = config(model_from_pretrained_kwargs={"token": True, "revision": "hf_main"}, hook_name="blocks.0.hook_x")
    assert cfg.model_from_pretrained_kwargs["token"] is True  # the key that was logged in with
    assert (
        redact_secrets("sequence_separator_token: bos, sk-learn, hf_hub")
        == "sequence_separator_token: bos, sk-learn, hf_hub"
    )


def test_the_command_line_prints_no_key(environment, capsys, monkeypatch):
    def fails(args):
        raise OSError(f"401 for {' and '.join(KEYS.values())}")

    monkeypatch.setattr("sae_lens_crosscoder.cli.demo.run", fails)
    assert cli.main(["demo"]) == 2
    assert capsys.readouterr().err == "sae-lens-crosscoder demo: 401 for *** and *** and *** and ***\n"
