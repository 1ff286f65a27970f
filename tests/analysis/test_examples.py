"""Examples are those that a search with everything in memory finds, however the tokens come."""

import types

import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.analysis.examples import file as example_file
from sae_lens_crosscoder.analysis.examples.kept_contexts import random_keys
from sae_lens_crosscoder.analysis.examples.windows import ExampleWindows, TokenSpans
from sae_lens_crosscoder.models.tiny import tiny_tokenizer
from tests.analysis.conftest import relu_crosscoder
from tests.models.small_models import random_hooked_transformer, some_tokens
from tests.reference import examples as ref

D_MODELS, D_SAE, HOOK, THRESHOLD = (8, 16), 7, "blocks.0.hook_resid_post", 1.0
DEAD = 2
WINDOW = (3, 2)
SIZES = dict(n_top=4, n_quantiles=3, n_per_quantile=2, window=WINDOW)
TOKENS = some_tokens(n_prompts=9, n_pos=12)
# Of 12 tokens: two documents, three, one that padding follows.
DOCUMENTS = torch.tensor([[0] * 5 + [1] * 7, [2] * 4 + [3] * 1 + [4] * 7, [5] * 9 + [-1] * 3] * 3)
# Not some at the ends, some in between, whole documents, and the last prompts.
KEEP = torch.rand(TOKENS.shape, generator=torch.Generator().manual_seed(4)) < 0.6
KEEP[1, 4:], KEEP[7:] = False, False


@pytest.fixture(scope="module")
def pair():
    return slc.HookedModelPair(*[random_hooked_transformer(d, seed=seed) for seed, d in enumerate(D_MODELS, start=1)])


@pytest.fixture(scope="module")
def crosscoder():
    cfg = slc.JumpReLUCrosscoderConfig(d_models=D_MODELS, d_sae=D_SAE, dtype="float64")
    crosscoder = slc.JumpReLUCrosscoder(cfg)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in crosscoder.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
        crosscoder.threshold.fill_(THRESHOLD)
        crosscoder.W_enc.mul_(8)  # so that quiet activations are heard
        crosscoder.W_enc[:, DEAD] = 0
        crosscoder.b_enc[DEAD] = -1
    crosscoder.cfg.metadata.hook_name = HOOK
    return crosscoder


def collect(crosscoder, pair, path, tokens=TOKENS, **kwargs):
    names = ("token_mask", "documents", "tokenizer", "batch_size")
    data = slc.EvalData(pair=pair, tokens=tokens, **{name: kwargs.pop(name) for name in names if name in kwargs})
    return slc.analysis.collect_examples(crosscoder, data, path / "examples.safetensors", **{**SIZES, **kwargs})


def reference_contexts(crosscoder, pair, latent, documents, keep):
    parts = [crosscoder.layout.split(prompt) for prompt in pair.activations(TOKENS, HOOK).double()]
    prompts = [list(zip(*(part.tolist() for part in models), strict=True)) for models in parts]
    encoder = [part[latent].tolist() for part in crosscoder.encoders]
    bias = crosscoder.b_enc[latent].item()
    return ref.contexts(prompts, encoder, bias, THRESHOLD, documents.tolist(), *WINDOW, keep.tolist())


def assert_is(example, expected):
    assert (example.prompt, example.position) == (expected["prompt"], expected["position"])
    assert example.token_ids.tolist() == TOKENS[expected["prompt"]][expected["positions"]].tolist()
    assert expected["positions"][example.peak] == expected["position"]
    assert example.score == pytest.approx(expected["score"], rel=1e-5)
    for name in ("scores", "shares"):
        close = dict(rtol=1e-5, atol=1e-5, equal_nan=True)
        torch.testing.assert_close(getattr(example, name), torch.tensor(expected[name]), **close)


@pytest.mark.parametrize("documents", [None, DOCUMENTS])
@pytest.mark.parametrize("keep", [None, KEEP])
@pytest.mark.parametrize("seed", [0, 11])
def test_examples_are_those_of_a_search_with_everything_in_memory(crosscoder, pair, tmp_path, documents, keep, seed):
    examples = collect(crosscoder, pair, tmp_path, documents=documents, token_mask=keep, seed=seed, batch_size=2)
    n_seen = []
    for latent in range(D_SAE):
        ids = torch.zeros_like(TOKENS) if documents is None else documents
        found = reference_contexts(crosscoder, pair, latent, ids, torch.ones_like(ids) if keep is None else keep)
        got = examples[latent]
        assert got.n_contexts == len(found)
        n_seen.append(len(found))
        for example, expected in zip(got.top, ref.top(found, 4), strict=True):
            assert_is(example, expected)
        for band, expected_band in zip(got.quantiles, ref.bands(found, seed, latent, 3, 2), strict=True):
            for example, expected in zip(band, expected_band, strict=True):
                assert_is(example, expected)
    assert n_seen[DEAD] == 0
    assert max(n_seen) > 6  # so that something had to be chosen


def test_the_shares_and_the_bias_are_the_pre_activation_and_where_on_the_score(crosscoder, pair, tmp_path):
    n_on = 0
    for got in collect(crosscoder, pair, tmp_path):
        for example in (*got.top, *(example for band in got.quantiles for example in band)):
            pre = example.shares.sum(dim=-1) + got.b_enc
            on = pre > THRESHOLD
            torch.testing.assert_close(example.scores, torch.where(on, pre, 0), rtol=1e-5, atol=1e-5)
            n_on += int(on.sum())
    assert n_on > 0


@pytest.mark.parametrize("batch_size", [1, 4, 9])
def test_batches_of_any_size_give_the_same_examples(crosscoder, pair, tmp_path, batch_size):
    kwargs = dict(documents=DOCUMENTS, seed=3)
    expected = collect(crosscoder, pair, tmp_path, batch_size=2, **kwargs)
    expected = [expected[latent] for latent in range(D_SAE)]
    for one, other in zip(collect(crosscoder, pair, tmp_path, batch_size=batch_size, **kwargs), expected, strict=True):
        for a, b in zip((one.top, *one.quantiles), (other.top, *other.quantiles), strict=True):
            for x, y in zip(a, b, strict=True):
                assert (x.prompt, x.position, x.token_ids.tolist()) == (y.prompt, y.position, y.token_ids.tolist())
                torch.testing.assert_close(x.shares, y.shares, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("keep", [None, KEEP])
@pytest.mark.parametrize("batch_size", [2, 9])
def test_a_cache_gives_the_examples_of_the_tokens_that_it_is_of(
    crosscoder, pair, tmp_path, monkeypatch, keep, batch_size
):
    tokenizer = types.SimpleNamespace(bos_token_id=int(TOKENS[0, 4]))
    options = dict(batch_size=batch_size, tokenizer=tokenizer)
    expected = collect(crosscoder, pair, tmp_path, token_mask=keep, **options)
    expected, manifest = list(map(expected.__getitem__, range(D_SAE))), expected.manifest
    cache = slc.cache_activations(tmp_path, pair, TOKENS, HOOK, token_mask=keep, dtype="float32", prompts_per_shard=4)
    monkeypatch.setattr(pair, "activations", None)
    data = slc.EvalData(activations=cache, **options)
    found = slc.analysis.collect_examples(crosscoder, data, tmp_path / "examples.safetensors", **SIZES)
    assert found.manifest == manifest
    for latent in range(D_SAE):
        assert_same(found[latent], expected[latent])


def assert_same(found, expected):
    assert found.n_contexts == expected.n_contexts
    for these, those in zip((found.top, *found.quantiles), (expected.top, *expected.quantiles), strict=True):
        for a, b in zip(these, those, strict=True):
            assert (a.prompt, a.position, a.peak) == (b.prompt, b.position, b.peak)
            assert a.token_ids.tolist() == b.token_ids.tolist()
            torch.testing.assert_close((a.scores, a.shares), (b.scores, b.shares), rtol=1e-5, atol=1e-5, equal_nan=True)


def test_padding_changes_nothing_whatever_it_is(crosscoder, pair, tmp_path):
    """Behind every prompt, and as prompts of its own."""
    ids = some_tokens(n_prompts=14, n_pos=20, seed=9)
    keep = torch.zeros_like(ids, dtype=torch.bool)
    ids[:9, :12], keep[:9, :12] = TOKENS, True
    expected = collect(crosscoder, pair, tmp_path)
    expected = list(map(expected.__getitem__, range(D_SAE)))
    found = collect(crosscoder, pair, tmp_path, tokens=ids, token_mask=keep, batch_size=2)
    for latent in range(D_SAE):
        assert_same(found[latent], expected[latent])
    assert found.manifest["n_tokens"] == TOKENS.numel()


def test_a_run_can_be_repeated_byte_for_byte_and_another_seed_draws_another_sample(crosscoder, pair, tmp_path):
    first = collect(crosscoder, pair, tmp_path, seed=1).path.read_bytes()
    assert collect(crosscoder, pair, tmp_path, seed=1).path.read_bytes() == first
    places = [[], []]
    for seed in (1, 2):
        for got in collect(crosscoder, pair, tmp_path, seed=seed):
            places[seed - 1] += [example.prompt for band in got.quantiles for example in band]
    assert places[0] != places[1]


def test_documents_begin_at_the_tokenizers_bos(crosscoder, pair, tmp_path, monkeypatch):
    bos_id = int(TOKENS[0, 4])
    ids = TOKENS.eq(bos_id).cumsum(dim=1)
    assert int(ids.max()) > 0
    expected = [got.n_contexts for got in collect(crosscoder, pair, tmp_path, documents=ids)]
    without = [got.n_contexts for got in collect(crosscoder, pair, tmp_path)]
    monkeypatch.setattr(pair, "tokenizer", types.SimpleNamespace(bos_token_id=bos_id))
    assert [got.n_contexts for got in collect(crosscoder, pair, tmp_path)] == expected != without


def test_of_equal_scores_the_earliest_context_is_kept_and_its_first_peak():
    crosscoder = relu_crosscoder([[1.0, 0.0]], d_models=(1, 1))
    rows = torch.tensor([[1.0, 5.0, 5.0], [5.0, 0.0, 0.0], [7.0, 0.0, 5.0], [5.0, 5.0, 5.0], [7.0, 0.0, 0.0]])
    for order in ((5,), (1, 1, 1, 1, 1), (2, 3)):
        windows = ExampleWindows(crosscoder, n_top=3, n_sampled=1, window=(1, 1), seed=0)
        for part in rows.split(order if len(order) > 1 else 5):
            activations = torch.stack([part.flatten(), torch.zeros(part.numel())], dim=1).double()
            windows.add(activations, TokenSpans(torch.zeros_like(part).long(), None, None))
        assert windows.tensors()["token"][0, :3].tolist() == [6, 12, 1]


def test_what_is_held_does_not_grow_with_the_tokens(crosscoder):
    windows = ExampleWindows(crosscoder, n_top=3, n_sampled=2, window=(2, 1), seed=0)

    def sizes():
        holders = (windows, windows.top, windows.sample)
        return [value.shape for holder in holders for value in vars(holder).values() if isinstance(value, torch.Tensor)]

    empty = sizes()
    assert sum(shape.numel() for shape in empty) == D_SAE * (1 + 5 * 2 + 5 * 4 * (1 + 1 + 2)) + 4
    for seed in range(4):
        activations = torch.randn(60, 24, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        windows.add(activations, TokenSpans(torch.zeros(6, 10, dtype=torch.long), None, None))
    assert sizes() == empty
    assert int(windows.n_contexts.sum()) > D_SAE * 5  # more than there is room for


def test_the_sample_is_uniform():
    """Keys of many seeds: each of ten contexts is the largest about equally often."""
    context = torch.arange(10)
    winners = [int(random_keys(seed, torch.full((10,), 5), context).argmax()) for seed in range(2000)]
    counts = torch.tensor(winners).bincount(minlength=10)
    assert counts.sub(200).abs().max() < 5 * 200**0.5


def test_reading_one_latent_reads_its_rows_only(crosscoder, pair, tmp_path, monkeypatch):
    n_read = []

    class Recorded:
        """A file that hands out nothing but slices, and counts the bytes in them."""

        def __init__(self, *args):
            self._file = example_file_open(*args)

        def keys(self):
            return self._file.keys()

        def metadata(self):
            return self._file.metadata()

        def get_slice(self, name):
            return RecordedSlice(self._file.get_slice(name))

    class RecordedSlice:
        def __init__(self, whole):
            self.get_shape, self._whole = whole.get_shape, whole

        def __getitem__(self, index):
            part = self._whole[index]
            n_read.append(part.nbytes)
            return part

    path = collect(crosscoder, pair, tmp_path).path
    whole = slc.analysis.load_examples(path)[4]
    example_file_open = example_file.safe_open
    monkeypatch.setattr(example_file, "safe_open", Recorded)
    got = slc.analysis.load_examples(path)[4]
    assert [example.score for example in got.top] == [example.score for example in whole.top]
    slots, width = 4 + 3 * 2, 3 + 1 + 2
    assert sum(n_read) == slots * (8 + width * (4 + 4 + 2 * 4)) + 8 + 4 + 32  # one latent, of the seven in the file


def test_the_file_says_what_it_is_of_and_is_whole_or_absent(crosscoder, pair, tmp_path, monkeypatch):
    examples = collect(crosscoder, pair, tmp_path, seed=5)
    manifest = examples.manifest
    assert manifest["hook_name"] == HOOK
    assert (manifest["sample_seed"], manifest["n_tokens"], manifest["window"]) == (5, TOKENS.numel(), [3, 2])
    others = [
        collect(crosscoder, pair, tmp_path, tokens=tokens).manifest for tokens in (TOKENS.clone(), TOKENS.flip(0))
    ]
    assert [other["tokens_sha256"] == manifest["tokens_sha256"] for other in others] == [True, False]
    assert [file.name for file in tmp_path.iterdir()] == ["examples.safetensors"]
    before = examples.path.read_bytes()

    def break_down(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr("sae_lens_crosscoder.storage.atomic.os.fsync", break_down)
    with pytest.raises(OSError, match="disk full"):
        collect(crosscoder, pair, tmp_path, seed=6)
    assert examples.path.read_bytes() == before


def test_show_marks_the_strongest_tokens_and_says_whose_they_are():
    tokenizer = tiny_tokenizer()
    ids = torch.tensor([5, 6, 7], dtype=torch.int32)
    shares = torch.tensor([[0.0, 1.0], [1.0, 3.0], [0.5, 1.5]])
    example = example_file.Example(0, 1, 1, ids, torch.tensor([1.0, 4.0, 2.0]), shares)
    shown = example_file.LatentExamples(9, 1, 0.0, (example,), ((), (example,)), ("base", "chat")).show(tokenizer)
    a, b, c = tokenizer.decode([5, 6, 7]).split(" ")
    line = f"  4.00 (base +1.00, chat +3.00)  {a}« {b}»« {c}»"
    assert shown.split("\n") == ["latent 9: active in 1 contexts", "top", line, "quantile 2 of 2", line]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(n_top=0), "n_top=0 must be at least 1"),
        (dict(window=(3, -1)), "window=\\(3, -1\\) must not be negative"),
        (dict(documents=DOCUMENTS[:2]), "documents has shape \\(2, 12\\), but tokens has \\(9, 12\\)"),
        (dict(batch_size=0), "batch_size=0"),
        (dict(token_mask=KEEP[:2]), "token_mask has shape \\(2, 12\\), expected \\(9, 12\\)"),
        (dict(token_mask=torch.zeros_like(KEEP)), "token_mask leaves out all 108 tokens"),
    ],
)
def test_arguments_that_mean_nothing_are_refused_before_the_models_run(
    crosscoder, pair, tmp_path, monkeypatch, kwargs, message
):
    monkeypatch.setattr(pair, "activations", None)
    with pytest.raises(ValueError, match=message):
        collect(crosscoder, pair, tmp_path, **kwargs)


def test_what_cannot_be_written_or_read_is_refused(crosscoder, pair, tmp_path):
    with pytest.raises(ValueError, match="in a folder that does not exist"):
        collect(crosscoder, pair, tmp_path / "nowhere")
    with pytest.raises(ValueError, match="does not exist"):
        slc.analysis.load_examples(tmp_path / "nothing")
    (tmp_path / "text").write_text("no examples")
    with pytest.raises(ValueError, match="is not an examples file"):
        slc.analysis.load_examples(tmp_path / "text")
    crosscoder.save_model(tmp_path)
    with pytest.raises(ValueError, match="examples_format=None"):
        slc.analysis.load_examples(tmp_path / "sae_weights.safetensors")
    with pytest.raises(IndexError, match="latent=7 does not exist: the crosscoder has latents 0 to 6"):
        collect(crosscoder, pair, tmp_path)[D_SAE]
