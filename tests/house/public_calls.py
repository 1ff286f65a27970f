"""One call of every public function, on small models of every class, from which the odd ones are made."""

import copy
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from sae_lens import StandardSAE, StandardSAEConfig

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.models.tiny import TINY_HOOK
from sae_lens_crosscoder.workflows import paper_report as paper
from tests.causal.conftest import random_crosscoder
from tests.crosscoders.conftest import batchtopk_crosscoder
from tests.models.small_models import llama

CLASSES = ("HookedTransformer", "TransformerBridge", "AutoModelForCausalLM")
HOOKS = dict(zip(CLASSES, (TINY_HOOK, "blocks.1.hook_resid_post", "model.layers.1"), strict=True))
CHATS = [
    [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
    for text, answer in (("where is paris ?", "paris is in france"), ("how do i burn the dog ?", "sorry i cannot help"))
]
POSITIVE, NEGATIVE = (
    [f"{verb} the {noun} ?" for noun in ("dog", "truck", "ladder", "cake")] for verb in ("burn", "paint")
)


@dataclass
class World:
    """A pair of one class of models, with everything that a public function may be given."""

    model_class: str
    folder: Path
    is_dead: bool = False
    like: "World | None" = field(default=None, repr=False)

    @cached_property
    def pair(self) -> Any:
        if self.like is not None:
            return self.like.pair
        if self.model_class == "HookedTransformer":
            return slc.HookedModelPair.from_pretrained("tiny-base", "tiny-chat")
        models = [llama(noise=noise) for noise in (0.0, 0.02)]
        tokenizer = slc.models.tiny_tokenizer()
        if self.model_class == "AutoModelForCausalLM":
            from sae_lens.load_model import HookedProxyLM

            models = [HookedProxyLM(model, tokenizer).eval() for model in models]
        return slc.HookedModelPair(*models, tokenizer=tokenizer)

    @cached_property
    def hook(self) -> str:
        return HOOKS[self.model_class]

    @cached_property
    def d_model(self) -> int:
        return self.pair.layout_at(self.hook).d_models[0]

    def crosscoder_of(self, *widths: int) -> Any:
        crosscoder = random_crosscoder(widths, dtype="float32", threshold=0.1, d_sae=12)
        metadata = crosscoder.cfg.metadata
        metadata.hook_name, metadata.model_name, metadata.chat_model_name = self.hook, "tiny-base", "tiny-chat"
        if self.is_dead:
            crosscoder.b_enc.data.fill_(-1e6)
        return crosscoder

    @cached_property
    def crosscoder(self) -> Any:
        return self.crosscoder_of(self.d_model, self.d_model)

    @cached_property
    def tokens(self) -> torch.Tensor:
        drawn = torch.randint(5, 60, (4, 10), generator=torch.Generator().manual_seed(0))
        drawn[:, 0] = self.pair.tokenizer.bos_token_id
        return drawn

    @property
    def data(self) -> Any:
        groups = slc.data.TokenGroups(torch.arange(40).view(4, 10) % 2, ("even", "odd"))
        return slc.EvalData(pair=self.pair, tokens=self.tokens, groups=groups, max_norm_ratio=None)

    @cached_property
    def stacked(self) -> torch.Tensor:
        return self.pair.activations(self.tokens, self.hook).flatten(0, 1)

    @cached_property
    def responses(self) -> Any:
        return slc.causal.given_responses(self.pair, CHATS)

    @cached_property
    def diagnosis(self) -> Any:
        return slc.diagnose(self.crosscoder, self.data)

    @cached_property
    def latents(self) -> Any:
        return self.diagnosis.latents

    @cached_property
    def contrast(self) -> Any:
        return slc.data.Contrast.from_texts("burns", POSITIVE, NEGATIVE, self.pair.tokenizer)

    @cached_property
    def examples(self) -> Any:
        path = self.folder / f"{self.model_class}-{self.is_dead}.safetensors"
        return slc.analysis.collect_examples(self.crosscoder, self.data, path, n_top=2, n_quantiles=2, n_per_quantile=1)

    @cached_property
    def rows(self) -> Any:
        return slc.analysis.difference_rows(self.data, self.hook)

    @cached_property
    def located(self) -> Any:
        mask = torch.ones_like(self.tokens, dtype=torch.bool)
        return slc.causal.locate_difference(self.pair, self.tokens, mask, [self.hook])

    @cached_property
    def planted(self) -> Any:
        return slc.synthetic.world_a(0, d_models=(8, 8), probabilities=(0.2, 0.3))

    @cached_property
    def over_layers(self) -> Any:
        crosscoder = random_crosscoder((8, 8), dtype="float32", threshold=0.1, d_sae=12)
        crosscoder.cfg.hook_names = slc.synthetic.LayeredWorld(2, 2, 8).layout.hook_names
        return crosscoder

    @cached_property
    def exploration(self) -> Any:
        return slc.explore(self.crosscoder, self.data, self.diagnosis, examples=self.examples, n_random=2)

    @cached_property
    def dead(self) -> "World":
        return World(self.model_class, self.folder, True, self)

    @cached_property
    def plain_sae(self) -> Any:
        return StandardSAE(StandardSAEConfig(d_in=2 * self.d_model, d_sae=12))


def fitted(world: World, n: int) -> Any:
    scaling = slc.analysis.LatentScaling(world.crosscoder)
    f = world.crosscoder.encode_sparse(world.stacked[:n])
    scaling.add(world.stacked[:n], f, world.crosscoder.decode(f))
    return scaling


def canonical(world: World) -> Any:
    """A crosscoder as training saves it, with one threshold for all."""
    crosscoder = copy.deepcopy(world.crosscoder)
    norms = crosscoder.decoder_norms.sum(dim=-1)
    crosscoder.W_dec.data /= norms[:, None]
    crosscoder.W_enc.data *= norms
    crosscoder.b_enc.data *= norms
    return crosscoder


def energies(world: World) -> Any:
    sums = slc.analysis.TargetEnergies(world.crosscoder)
    f = world.crosscoder.encode_sparse(world.stacked)
    sums.add(world.stacked, world.crosscoder.decode(f))
    return sums


def recipe(d_model: int) -> Any:
    trainer = slc.CrosscoderTrainerConfig(total_training_samples=32, train_batch_size_samples=16, lr_warm_up_steps=0)
    cfg = slc.BatchTopKCrosscoderTrainingConfig(d_model=d_model, d_sae=12, k=2)
    return slc.training.TrainingRecipe(cfg, trainer)


IDS = [1, 4]
A, C, T = slc.analysis, slc.causal, torch
# The arguments of one call; those of the models' rooms are built for every class of models, the others for one.
OF_MODELS = {
    "harvest": lambda w: dict(pair=w.pair, tokens=w.tokens, hook_name=w.hook),
    "cache_activations": lambda w: dict(
        path=w.folder / f"cache-{w.model_class}", models=w.pair, tokens=w.tokens, hook_name=w.hook
    ),
    "contrast_rows": lambda w: dict(pair=w.pair, contrast=w.contrast, hook_name=w.hook),
    "answer_rows": lambda w: dict(pair=w.pair, contrast=w.contrast, hook_name=w.hook, max_new_tokens=2),
    "diagnose": lambda w: dict(crosscoder=w.crosscoder, data=w.data),
    "concepts": lambda w: dict(
        crosscoder=w.crosscoder, data=w.data, contrasts=[w.contrast], latents=w.latents, target="difference"
    ),
    "changed": lambda w: dict(
        crosscoder=w.crosscoder, data=w.data, contrasts=[w.contrast], recipe=recipe(w.d_model), n_decoys=1
    ),
    "activation_divergence": lambda w: dict(
        crosscoder=w.crosscoder, data=w.data, latent_pairs=pd.DataFrame({"base_latent": [1, 2], "chat_latent": [3, 4]})
    ),
    "activation_profiles": lambda w: dict(
        crosscoder=w.crosscoder, data=w.data, max_activation=w.latents.max_activation
    ),
    "collect_examples": lambda w: dict(
        crosscoder=w.crosscoder, data=w.data, path=w.folder / f"{w.model_class}.safetensors", n_top=2
    ),
    "difference_rows": lambda w: dict(data=w.data, hook_name=w.hook),
    "latent_uses": lambda w: dict(crosscoder=w.crosscoder, data=w.data, min_active=1),
    "latent_use": lambda w: dict(crosscoder=w.crosscoder, data=w.data, min_active=1),
    "latent_statistics": lambda w: dict(crosscoder=w.crosscoder, data=w.data),
    "nu_by_group": lambda w: dict(crosscoder=w.crosscoder, data=w.data),
    "nu_controls": lambda w: dict(crosscoder=w.crosscoder, data=w.data),
    "paper_tables": lambda w: dict(crosscoders={"one": w.crosscoder}, data=w.data),
    "causal_effects": lambda w: dict(
        crosscoder=w.crosscoder,
        pair=w.pair,
        responses=w.responses,
        latents=w.latents.assign(nu_error=0.1, nu_reconstruction=0.1),
        pool_size=2,
    ),
    "causal_ladder": lambda w: dict(
        crosscoder=w.crosscoder,
        pair=w.pair,
        contrast=w.contrast,
        latent_ids=IDS,
        shows_behaviour=bool,
        rungs=(1,),
        n_draws=1,
        max_new_tokens=1,
    ),
    "generate_patched": lambda w: dict(pair=w.pair, tokens=w.tokens, max_new_tokens=2),
    "generate_responses": lambda w: dict(pair=w.pair, conversations=[chat[:1] for chat in CHATS], max_new_tokens=2),
    "given_responses": lambda w: dict(pair=w.pair, conversations=CHATS),
    "kl_between_models": lambda w: dict(pair=w.pair, tokens=w.tokens),
    "kl_to_chat": lambda w: dict(crosscoder=w.crosscoder, pair=w.pair, responses=w.responses, setups=[C.Setup("base")]),
    "latent_effects": lambda w: dict(crosscoder=w.crosscoder, pair=w.pair, responses=w.responses, latent_ids=IDS),
    "swap_effects": lambda w: dict(crosscoder=w.crosscoder, data=w.data, latent_ids=IDS, n_resamples=9),
    "locate_difference": lambda w: dict(
        pair=w.pair, tokens=w.tokens, token_mask=T.ones_like(w.tokens, dtype=T.bool), hook_names=[w.hook]
    ),
    "logit_attribution": lambda w: dict(model=w.pair.chat, directions=w.crosscoder.decoders[1].detach()),
    "logit_lens": lambda w: dict(model=w.pair.chat, directions=w.crosscoder.decoders[1].detach()),
    "next_tokens": lambda w: dict(pair=w.pair, tokens=w.tokens[:1], k=2),
    "token_kl": lambda w: dict(pair=w.pair, tokens=w.tokens[:1]),
    "patched": lambda w: dict(
        host=w.pair, crosscoder=w.crosscoder, latent_ids=IDS, positions=T.ones_like(w.tokens, dtype=T.bool)
    ),
    "recommend": lambda w: dict(located=w.located, changed=C.changed_prompts(T.tensor([0.1, 5.0, 6.0, 0.2]))),
    "residual_hooks": lambda w: dict(pair=w.pair),
    "resume_from": lambda w: dict(
        model=w.pair.chat, residual=T.zeros(2, 4, 10, w.d_model), hook_name=w.hook, tokens=w.tokens
    ),
    "splice_evals": lambda w: dict(
        crosscoder=w.crosscoder, pair=w.pair, tokens=w.tokens, scored=T.ones_like(w.tokens, dtype=T.bool)
    ),
    "steering_effects": lambda w: dict(
        pair=w.pair,
        tokens=w.tokens,
        last=T.full((4,), 9),
        hook_name=w.hook,
        directions=w.crosscoder.decoders[1].detach()[:2],
    ),
    "generate_answers": lambda w: dict(
        pair=w.pair, prompts=POSITIVE[:2], settings=slc.data.AnswerSettings(max_new_tokens=2)
    ),
    "compare": lambda w: dict(
        crosscoder=w.crosscoder, pair=w.pair, prompt=w.tokens[:1], n_latents=2, latents=w.latents
    ),
    "explore": lambda w: dict(
        crosscoder=w.crosscoder, data=w.data, diagnosis=w.diagnosis, responses=w.responses, n_random=2
    ),
    "null_family": lambda w: dict(pair=w.pair, n_per_kind=1),
    "first_look": lambda w: dict(pair=w.pair, data=POSITIVE + NEGATIVE, n_resamples=10),
    "interpretation_cases": lambda w: dict(
        crosscoder=w.crosscoder,
        data=w.data,
        examples=w.examples,
        latent_ids=IDS,
        embed=slc.interpretation.sentence_embedder("words"),
    ),
    "write_delphi_cache": lambda w: dict(
        crosscoder=w.crosscoder, pair=w.pair, tokens=w.tokens, folder=w.folder / "delphi"
    ),
}
OF_TENSORS = {
    "paper_report": lambda w: dict(
        crosscoders={"one": w.crosscoder}, data=w.data, output_path=w.folder / "paper", images=()
    ),
    "agreement": lambda w: dict(
        first=w.crosscoder, second=w.crosscoder, first_latents=w.latents, second_latents=w.latents
    ),
    "compare_dictionaries": lambda w: dict(first=w.crosscoder, second=w.crosscoder),
    "correlations": lambda w: dict(latents=w.latents),
    "counts_below": lambda w: dict(latents=w.latents),
    "decoupled_pairs": lambda w: dict(crosscoder=w.crosscoder, latents=w.latents),
    "diagnose_weights": lambda w: dict(crosscoder=w.crosscoder),
    "layers_found": lambda w: dict(crosscoder=w.over_layers, world=slc.synthetic.LayeredWorld(2, 2, 8)),
    "delta_norm": lambda w: dict(norms=w.crosscoder.decoder_norms),
    "difference_pca": lambda w: dict(rows=w.rows, n_components=2),
    "mean_difference": lambda w: dict(rows=w.rows),
    "train_difference_sae": lambda w: dict(rows=w.rows, d_sae=8, k=2, n_steps=2, batch_size=8),
    "difference_shares": lambda w: dict(crosscoder=w.crosscoder, stacked=w.stacked[3]),
    "mse_improvement": lambda w: dict(fitted=fitted(w, 20), evaluated=fitted(w, 40), energies=energies(w)),
    "overlap_with_shared": lambda w: dict(latents=w.latents),
    "rank_overlap": lambda w: dict(latents=w.latents),
    "rho": lambda w: dict(base=w.crosscoder.decoders[0], chat=w.crosscoder.decoders[1]),
    "with_own_probe": lambda w: dict(latents=w.latents),
    "intervention": lambda w: dict(crosscoder=w.crosscoder, latent_ids=IDS, how="ablate"),
    "changed_prompts": lambda w: dict(kl=T.tensor([0.1, 5.0, 6.0, 0.2])),
    "kl_divergence": lambda w: dict(log_p=T.zeros(2, 5).log_softmax(-1), log_q=T.zeros(2, 5).log_softmax(-1)),
    "log_probs": lambda w: dict(logits=T.zeros(2, 5)),
    "share_brought_back": lambda w: dict(patched=T.rand(3, 4), kl=T.rand(4) + 1, weights=T.ones(2, 4)),
    "latent": lambda w: dict(crosscoder=w.crosscoder, latent=3, latents=w.latents),
    "save_dictionary_learning": lambda w: dict(crosscoder=canonical(w), folder=w.folder / "exported", k=4),
    "null_activations": lambda w: dict(activations=[w.stacked], layout=w.crosscoder.layout, kind="jittered"),
    "shuffled_batches": lambda w: dict(activations=w.stacked, batch_size=8, seed=0),
    "truth_table": lambda w: dict(
        world=w.planted, crosscoder=w.crosscoder_of(8, 8), tokens=w.planted.sample(30, seed=1)
    ),
    "delta_norm_histogram": lambda w: dict(diagnoses={"one": w.diagnosis}),
    "nu_scatter": lambda w: dict(diagnoses={"one": w.diagnosis}),
    "find_phrases": lambda w: dict(base_answers=["a b"] * 4, chat_answers=["c d"] * 4, held_out=T.arange(4) % 2 == 1),
    "find_markers": lambda w: dict(
        prompts=["a", "b", "a", "b"], positive=T.arange(4) % 2 == 1, held_out=T.arange(4) > 1
    ),
    "write_report": lambda w: dict(
        diagnoses={"one": w.diagnosis}, path=w.folder / "r.html", comparison=w.latents.head(2).astype(str)
    ),
    "write_weights": lambda w: dict(
        diagnosis=slc.analysis.diagnose_weights(w.crosscoder), path=w.folder / "weights.html"
    ),
    "write_explorer": lambda w: dict(explorations={"one": w.exploration}, path=w.folder / "e.html"),
    "write_neuronpedia": lambda w: dict(exploration=w.exploration, folder=w.folder / "n", source_set="s", model_id="m"),
    "chat_tokens": lambda w: dict(tokenizer=w.pair.tokenizer, messages=CHATS[0]),
    "labelled_rows": lambda w: dict(tokenizer=w.pair.tokenizer, chats=CHATS),
    "token_groups": lambda w: dict(
        chats=[slc.data.chat_tokens(w.pair.tokenizer, chat) for chat in CHATS], tokenizer=w.pair.tokenizer
    ),
    "tokenize_prompts": lambda w: dict(prompts=POSITIVE, tokenizer=w.pair.tokenizer),
}
# They load, train, ask the network or write what is tested elsewhere, and so are called with what they refuse alone.
OF_FILES = {
    *("load", "estimate_theta", "load_prompts", "load_examples", "load_labels", "load_latent_table", "save_label"),
    *("save_interpretations", "load_model", "load_tiny_model", "load_tokenizer", "model_size", "push_to_hub"),
    *(
        "write_model_card",
        "plan",
        "run_causal",
        "run_demo",
        "run_diagnose",
        "run_look",
        "run_paper_report",
        "write_run_cache",
    ),
    *(
        "train_together",
        "polish",
        "interpret",
        "interpretation_cost",
        "sentence_embedder",
        "effects_bars",
        "audit",
        "write_audit",
        "serve",
    ),
    *("write_effects", "hook_curves", "write_first_look", "write_images", "score_card", "concept_recovery"),
    *(
        "world_a",
        "null_world",
        "background_world",
        "family_world",
        "lora_world",
        "tiny_dataset",
        "tiny_contrasts",
        "tiny_labelled_rows",
    ),
}
# Functions that one class of models does not support, and the reason that their message gives.
NO_LATER_LAYERS = "The model is a HookedProxyLM, whose layers after a hook cannot run alone"
UNSUPPORTED = {
    **dict.fromkeys(("causal_effects", "kl_to_chat", "latent_effects", "resume_from", "explore"), NO_LATER_LAYERS),
    **dict.fromkeys(("logit_attribution", "logit_lens"), "The model is a HookedProxyLM, without ln_final and W_U"),
}
# What a call is refused for in so small a world; its results are tested elsewhere.
TOO_SMALL = {"changed": "Contrast 'burns' allows 1 control splits"}
# Words by which a message may name an argument that is made of several parts.
NAMES = {
    "data": ("data", "tokens", "activations", "token_mask", "groups", "tokenizer", "pair", "prompts"),
    "pair": ("pair", "model"),
    "host": ("host", "pair"),
    "prompt": ("prompt", "tokens"),
    "latent_ids": ("latent",),
    **dict.fromkeys(("crosscoder", "first", "second"), ("crosscoder", "decoder", "d_models")),
}


class Other:
    """An object of a class that no argument may have."""

    def __repr__(self) -> str:
        return "Other()"


def odd_values(name: str, value: Any, world: World) -> Any:
    """Pairs of a kind and a value that stands for the odd kind of an argument."""
    yield "another class", Other()
    if isinstance(value, torch.Tensor):
        yield "none", value[:0]
        yield "wrong rank", value[None]
        yield "wrong rank", value[0]
        yield "wrong width", value[..., :-1]
        yield "another class", value.tolist()
    elif name in ("crosscoder", "first", "second"):
        yield "all dead", world.dead.crosscoder
        yield "wrong width", world.crosscoder_of(world.d_model + 1, world.d_model + 1)
        yield "wrong width", world.crosscoder_of(world.d_model, world.d_model + 1)
        yield "another class", world.plain_sae
        yield "another class", batchtopk_crosscoder(d_models=(world.d_model, world.d_model))
    elif isinstance(value, slc.EvalData):
        yield "none", {"tokens": world.tokens[:0]}
        yield "none", {"token_mask": torch.zeros_like(world.tokens, dtype=torch.bool)}
        yield "wrong rank", {"tokens": world.tokens[0]}
        yield "wrong rank", slc.EvalData(activations=[world.stacked[None]], max_norm_ratio=None)
        yield "wrong width", slc.EvalData(activations=[world.stacked[:, :-1]], max_norm_ratio=None)
        yield "none", slc.EvalData(activations=[], max_norm_ratio=None)
        yield "another class", world.pair
        yield "another class", world.tokens
    elif name == "pair":
        yield "another class", world.pair.chat
        yield "wrong width", narrow_pair()
    elif hasattr(value, "iloc"):
        yield "none", value.iloc[:0]
        yield "all dead", world.dead.latents if len(value) == 12 and value.ndim == 2 else value * 0
        yield "wrong width", value.head(5)
        yield "another class", value.to_dict()
    elif isinstance(value, list | dict):
        yield "none", type(value)()
    if name == "latent_ids":
        yield "wrong width", [99]
        yield "wrong rank", torch.tensor([[1, 2]])


_NARROW: list[Any] = []


def narrow_pair() -> Any:
    from tests.models.small_models import random_hooked_transformer

    if not _NARROW:
        models = [random_hooked_transformer(16, seed=seed, d_vocab=len(slc.models.tiny_tokenizer())) for seed in (1, 2)]
        for model in models:
            model.tokenizer = slc.models.tiny_tokenizer()
        _NARROW.append(slc.HookedModelPair(*models))
    return _NARROW[0]


def functions_and_classes() -> dict[str, Any]:
    """What is public, by name; one that is public in several rooms counts once."""
    import importlib

    from tests.house.pages import public_modules

    modules = [importlib.import_module(name) for name in public_modules()]
    public = {name: getattr(module, name) for module in modules for name in getattr(module, "__all__", ())}
    assert paper.paper_report
    return public


def functions() -> dict[str, Any]:
    """Public functions by name."""
    import inspect

    return {name: value for name, value in functions_and_classes().items() if inspect.isfunction(value)}


def used_up(result: Any) -> None:
    """Read a result that is only made when it is read."""
    if isinstance(result, AbstractContextManager) and not isinstance(result, Path):
        with result as host:
            host(torch.full((4, 10), 7))
    elif hasattr(result, "__next__"):
        for _, _each in zip(range(20), result, strict=False):
            pass
