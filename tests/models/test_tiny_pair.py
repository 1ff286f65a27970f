"""Laws of the tiny pair: its text and labels, its tokenizer, what its committed models do and do not do."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sae_lens_crosscoder.models import tiny
from sae_lens_crosscoder.models.loading import load_model
from sae_lens_crosscoder.models.tiny.dialogues import in_split
from sae_lens_crosscoder.models.tiny.documents import TINY_KINDS
from sae_lens_crosscoder.models.tiny.models import WEIGHTS_PATH
from sae_lens_crosscoder.models.tiny.training import train_tiny_pair
from sae_lens_crosscoder.models.tiny.vocabulary import (
    COUNTRY_OF,
    HARMFUL_VERBS,
    TOKEN_IDS,
    VICTIMS,
    VOCABULARY,
)

PROMPT_SEED = 77
NEW_KINDS = [
    *("harmful", "benign", "false_statement", "true_statement", "personal", "capability"),
    *("summarize", "copy", "count"),
]
CHAT_ONLY = ["refusal", "false_information", "personal_question", "summarize", "count"]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Fastest for models this small, and what makes training repeat to the bit."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


@pytest.fixture(scope="module")
def models():
    return {name: tiny.load_tiny_model(name) for name in tiny.TINY_MODELS}


@pytest.fixture(scope="module")
def chat_rows():
    return tiny.tiny_dataset(300, seed=5, mix="chat")


def words(ids) -> list[str]:
    return [VOCABULARY[i] for i in ids]


# --- text -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mix", ["base", "chat"])
def test_same_seed_same_rows_other_seed_other_rows(mix):
    first, again, other = (tiny.tiny_dataset(20, seed, mix).to_dict() for seed in (3, 3, 4))
    assert first == again
    assert first["input_ids"] != other["input_ids"]
    assert tiny.dialogues(5, seed=3) == tiny.dialogues(5, seed=3) != tiny.dialogues(5, seed=4)


def test_more_rows_continue_the_same_stream():
    assert tiny.tiny_dataset(30, seed=3)["input_ids"][:20] == tiny.tiny_dataset(20, seed=3)["input_ids"][:]


def test_rows_are_full_and_start_with_bos(chat_rows):
    for row in chat_rows["input_ids"]:
        assert len(row) == tiny.TINY_CONTEXT_SIZE
        assert row[0] == TOKEN_IDS["<bos>"]
        assert TOKEN_IDS["<pad>"] not in row


@pytest.mark.parametrize("mix", ["base", "chat"])
def test_roles_follow_from_the_template_tokens(mix):
    """Read every row with a state machine over the words alone, and compare with the generator's roles."""
    for row in tiny.tiny_dataset(200, seed=5, mix=mix):
        expected, state = [], 0
        for word in words(row["input_ids"]):
            if word in ("<bos>", "<eot>"):
                state = 0
            expected.append(3 if word in ("<bos>", "<sot>", "<eot>", "user", "model") else state)
            state = {"user": 1, "model": 2}.get(word, state)
        assert row["role"] == expected


def test_kinds_name_what_the_words_say(chat_rows):
    """A word that only one or two kinds can contain gives its label away."""
    tell_tale = {
        "<bos>": {"boundary"},
        "sorry": {"harmful", "speech"},
        "yes": {"true_statement", "speech"},
        "honestly": {"personal", "speech"},
        "summarize": {"summarize"},
        "count": {"count"},
        "copy": {"copy"},
        "live": {"where"},
        "eat": {"taste"},
        "lives": {"home"},
        "neighbors": {"gossip"},
        "teachers": {"praise"},
    }
    seen: dict[str, set[str]] = {word: set() for word in tell_tale}
    for row in chat_rows:
        for word, kind in zip(words(row["input_ids"]), row["kind"], strict=True):
            if word in seen:
                seen[word].add(TINY_KINDS[kind])
    assert seen == tell_tale


def test_base_text_uses_every_word_and_chat_text_never_insults():
    base = {i for row in tiny.tiny_dataset(3000, seed=1, mix="base")["input_ids"] for i in row}
    assert set(words(base)) == set(VOCABULARY) - {"<pad>"}
    chat = {i for row in tiny.tiny_dataset(3000, seed=1, mix="chat")["input_ids"] for i in row}
    assert "rude" in words(base)
    assert "rude" not in words(chat)


def harmful_combinations(conversations):
    """(verb, victim) of every refused request."""
    for conversation in conversations:
        for request, answer in zip(conversation[::2], conversation[1::2], strict=True):
            if answer["content"].startswith("sorry"):
                said = request["content"].split()
                verb = next(word for word in said if word in HARMFUL_VERBS)
                yield verb, next(word for word in said if word in VICTIMS)


def test_held_out_combinations_never_meet_in_training():
    train = set(harmful_combinations(tiny.dialogues(4000, seed=1)))
    held_out = set(harmful_combinations(tiny.dialogues(4000, seed=1, split="held_out")))
    assert train | held_out == {(verb, victim) for verb in HARMFUL_VERBS for victim in VICTIMS}
    assert not train & held_out
    assert len(held_out) >= 10


# --- tokenizer ------------------------------------------------------------------------------------


def test_tokenizer_round_trip_and_bos(chat_rows):
    tokenizer = tiny.tiny_tokenizer()
    for row in chat_rows["input_ids"][:20]:
        assert tokenizer(tokenizer.decode(row[1:]))["input_ids"] == row


def test_tokenizer_refuses_unknown_words():
    with pytest.raises(Exception, match="UNK"):
        tiny.tiny_tokenizer()("paris is in atlantis .")


def test_chat_template_gives_the_ids_of_the_text_the_models_were_trained_on():
    """Dialogues found in the rows and taken apart into messages come back from the template as they were."""
    tokenizer = tiny.tiny_tokenizer()
    n_found = 0
    for row in tiny.tiny_dataset(100, seed=9, mix="chat")["input_ids"]:
        for document in " ".join(words(row)).split("<bos> ")[1:-1]:  # the last one may be cut off
            if not document.startswith("<sot>"):
                continue
            messages = []
            for turn in document.split("<eot>")[:-1]:
                _, role, content = turn.split(maxsplit=2)
                role = {"user": "user", "model": "assistant"}[role]
                messages.append({"role": role, "content": content.strip()})
            encoded = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)
            expected = [TOKEN_IDS[word] for word in f"<bos> {document}".split()]
            assert encoded["input_ids"] == expected
            n_found += 1
    assert n_found > 50


def test_generation_prompt_ends_at_the_decision_token():
    messages = tiny.dialogues(1, seed=0)[0][:1]
    ids = tiny.tiny_tokenizer().apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
    assert words(ids["input_ids"])[-3:] == ["<eot>", "<sot>", "model"]


# --- matched prompts ------------------------------------------------------------------------------


@pytest.mark.parametrize("concept", tiny.CONCEPTS)
def test_matched_prompts_differ_in_few_words_and_end_alike(concept):
    prompts = tiny.matched_prompts(concept, 100, PROMPT_SEED)
    n_different = (prompts.positive != prompts.negative).sum(dim=1)
    assert n_different.min() >= 1
    assert n_different.max() <= 2
    assert (prompts.positive[:, 0] == TOKEN_IDS["<bos>"]).all()
    assert prompts.decision_position == prompts.positive.shape[1] - 1
    last = "is" if concept == "suppressed" else "model"
    for tokens in (prompts.positive, prompts.negative):
        assert (tokens[:, prompts.decision_position] == TOKEN_IDS[last]).all()


def test_matched_prompts_depend_on_the_seed_alone():
    first, again, other = (tiny.matched_prompts("refusal", 50, seed) for seed in (1, 1, 2))
    assert torch.equal(first.positive, again.positive)
    assert torch.equal(first.negative, again.negative)
    assert not torch.equal(first.positive, other.positive)


def test_statements_are_true_or_false_and_the_false_ones_held_out():
    prompts = tiny.matched_prompts("false_information", 100, PROMPT_SEED)
    for tokens, is_true in ((prompts.positive, False), (prompts.negative, True)):
        for row in tokens.tolist():
            said = words(row)
            city, country = next((w, said[i + 3]) for i, w in enumerate(said) if w in COUNTRY_OF)
            assert (COUNTRY_OF[city] == country) == is_true
            assert is_true or in_split(city, country, "held_out")


def test_unknown_concept_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"'refusals'.*refusal, false_information.*suppressed"):
        tiny.matched_prompts("refusals", 10, seed=0)
    with pytest.raises(ValueError, match="n_pairs=0"):
        tiny.matched_prompts("refusal", 0, seed=0)


# --- committed models -----------------------------------------------------------------------------


def test_behaviour_on_held_out_prompts(models):
    table = tiny.behaviour_table(models["tiny-base"], models["tiny-chat"], n_prompts=200, seed=PROMPT_SEED)
    assert set(table.index) == {*NEW_KINDS, "where", "taste", "gossip", "praise"}
    assert table.loc[NEW_KINDS, "chat"].min() >= 0.98
    assert table.loc[NEW_KINDS, "base"].max() <= 0.1
    assert table.loc[["where", "taste", "praise"], ["base", "chat"]].min().min() >= 0.98
    assert table.loc["gossip", "base"] >= 0.98
    assert table.loc["gossip", "chat"] <= 0.02


def test_null_model_behaves_as_the_base_model(models):
    table = tiny.behaviour_table(models["tiny-base"], models["tiny-null"], n_prompts=100, seed=PROMPT_SEED)
    torch.testing.assert_close(
        torch.tensor(table["base"].to_numpy()), torch.tensor(table["chat"].to_numpy()), atol=0.02, rtol=0
    )


def test_the_control_answers_the_chat_model_s_requests_without_its_behaviours(models):
    table = tiny.behaviour_table(models["tiny-base"], models["tiny-control"], n_prompts=100, seed=PROMPT_SEED)
    answered = ["benign", "true_statement", "capability", "copy"]
    assert table.loc[answered, "chat"].min() >= 0.98
    assert table.loc[[kind for kind in NEW_KINDS if kind not in answered], "chat"].max() <= 0.02
    assert table.loc[["where", "taste", "gossip", "praise"], "chat"].min() >= 0.98
    record = json.loads((WEIGHTS_PATH / "control.json").read_text())
    stored = {kind: row["control"] for kind, row in record["behaviour"].items()}
    assert stored == pytest.approx(table["chat"].to_dict(), abs=0.02)


def test_only_the_chat_model_carries_the_new_concepts(models):
    """At the recommended hook, and as `behaviour.json` records it (with other prompts)."""
    table = tiny.oracle_table(models["tiny-base"], models["tiny-chat"], tiny.TINY_HOOK, n_pairs=200, seed=PROMPT_SEED)
    assert table.loc[CHAT_ONLY, "oracle"].max() <= 0.2
    assert table.loc[["where", "taste"], "oracle"].between(0.5, 1.5).all()
    assert table.loc["suppressed", "oracle"] >= 1.5
    record = json.loads((WEIGHTS_PATH / "behaviour.json").read_text())
    for concept, oracle in record["oracle"][tiny.TINY_HOOK].items():
        assert table.loc[concept, "oracle"] == pytest.approx(oracle, abs=0.05, rel=0.15)


def test_chat_model_answers_a_whole_conversation(models):
    """Greedy generation from the chat template gives the answer, word for word, until the end of the turn."""
    chat = models["tiny-chat"]
    n_right = 0
    for request, answer, *_ in tiny.dialogues(30, seed=PROMPT_SEED, split="held_out"):
        prompt = chat.tokenizer.apply_chat_template([request], add_generation_prompt=True, return_dict=True)
        ids = torch.tensor([prompt["input_ids"]])
        for _ in range(len(answer["content"].split()) + 1):
            ids = torch.cat([ids, chat(ids)[:, -1].argmax(dim=-1, keepdim=True)], dim=1)
        n_right += words(ids[0].tolist())[len(prompt["input_ids"]) :] == [*answer["content"].split(), "<eot>"]
    assert n_right >= 28


def test_null_model_is_a_slightly_different_base(models):
    """Further from the base than rounding, and much nearer to it than the chat model is."""
    base = torch.nn.utils.parameters_to_vector(models["tiny-base"].parameters())
    distance = {
        name: (torch.nn.utils.parameters_to_vector(models[name].parameters()) - base).norm() / base.norm()
        for name in ("tiny-null", "tiny-chat")
    }
    assert 0.005 < distance["tiny-null"] < 0.5 * distance["tiny-chat"]


@pytest.mark.parametrize("name", tiny.TINY_MODELS)
def test_loaded_parameters_are_the_stored_ones(name, models):
    stored = load_file(WEIGHTS_PATH / f"{name}.safetensors")
    loaded = dict(models[name].named_parameters())
    assert stored.keys() == loaded.keys()
    assert all(torch.equal(stored[key].float(), loaded[key]) for key in stored)


def test_weights_are_small_enough_for_a_wheel():
    assert sum(file.stat().st_size for file in WEIGHTS_PATH.iterdir()) < 12_000_000


def test_model_reads_text_as_the_tokenizer_does(models):
    tokens = models["tiny-base"].to_tokens("paris is in france .")
    assert words(tokens[0].tolist()) == ["<bos>", "paris", "is", "in", "france", "."]


def test_dtype_is_honoured():
    model = tiny.load_tiny_model("tiny-base", dtype="bfloat16")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model(torch.tensor([[1, 2, 4]])).dtype == torch.bfloat16


def test_wrong_names_are_refused_with_the_right_ones():
    with pytest.raises(ValueError, match=r"'tiny-bse'.*tiny-base, tiny-chat, tiny-null, tiny-control"):
        tiny.load_tiny_model("tiny-bse")
    with pytest.raises(ValueError, match=r"dtype='float33'.*'float32'"):
        tiny.load_tiny_model("tiny-base", dtype="float33")


# --- training -------------------------------------------------------------------------------------


def test_smoke_training_is_reproducible_and_learns(tmp_path: Path):
    records = [train_tiny_pair(tmp_path / run, seed=1, steps_scale=0.005, n_prompts=5) for run in ("one", "two")]
    for name in ("tiny-base", "tiny-chat", "tiny-null"):
        one, two = (load_file(tmp_path / run / f"{name}.safetensors") for run in ("one", "two"))
        assert all(torch.equal(one[key], two[key]) for key in one)
    assert records[0]["behaviour"] == records[1]["behaviour"]
    uniform_loss_nats = torch.tensor(float(len(VOCABULARY))).log().item()
    assert records[0]["final_loss_nats"]["tiny-null"] < uniform_loss_nats - 0.3
    assert json.loads((tmp_path / "one" / "behaviour.json").read_text())["seed"] == 1


def test_a_jittered_model_is_as_far_from_its_original_as_its_name_says():
    original, jittered, again = (
        load_model(name, "cpu", "float32", "HookedTransformer", {})
        for name in ("tiny-base", "tiny-base+jitter=0.02", "tiny-base+jitter=0.02")
    )
    for (name, weights), noisy, same in zip(
        original.named_parameters(), jittered.parameters(), again.parameters(), strict=True
    ):
        assert torch.equal(noisy, same)
        if weights.numel() > 1000:
            assert ((noisy - weights).norm() / weights.norm()).item() == pytest.approx(0.02, rel=0.1), name
    for name in ("tiny-base+jitter=", "tiny-base+jitter=2", "tiny-base+jitter=-0.1", "tiny-base+jitter=x"):
        with pytest.raises(ValueError, match=r"must be between 0 and 1, as in 'tiny-base\+jitter=0.02'"):
            load_model(name, "cpu", "float32", "HookedTransformer", {})


def test_a_misspelt_built_in_model_is_refused_with_the_names_there_are():
    with pytest.raises(
        ValueError, match=r"Unknown .* 'tiny-bsae'. Use one of tiny-base, tiny-chat, tiny-null, tiny-control"
    ):
        load_model("tiny-bsae", "cpu", "float32", "HookedTransformer", {})
