"""The mixing buffer: every activation once, whole, in an order that depends on the seed alone."""

import pytest
import torch

from sae_lens_crosscoder.activations.shuffle_buffer import mixed_batches
from tests.reference import mixing as reference

CHUNKINGS = {"ones": [1] * 96, "even": [16] * 6, "odd": [7] * 13 + [5], "larger than the buffer": [90, 6], "one": [96]}


def activations(n_tokens=96):
    """Row t is (t, t + 1000): which token it is of, and whether its halves belong together."""
    t = torch.arange(n_tokens, dtype=torch.float32)
    return torch.stack([t, t + 1000], dim=1)


def mixed(sizes=(16,) * 6, batch_size=8, buffer_size=32, **options):
    chunks = activations(sum(sizes)).split(list(sizes)) if sizes else []
    return list(mixed_batches(chunks, batch_size=batch_size, buffer_size=buffer_size, **options))


def order_of(batches):
    return torch.cat(batches)[:, 0].long().tolist()


@pytest.mark.parametrize("sizes", CHUNKINGS.values(), ids=CHUNKINGS)
@pytest.mark.parametrize("mix_fraction", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("buffer_size", [8, 32, 96, 200])
def test_every_activation_comes_exactly_once_and_whole(sizes, mix_fraction, buffer_size):
    batches = mixed(sizes, buffer_size=buffer_size, mix_fraction=mix_fraction)
    assert all(batch.shape == (8, 2) for batch in batches)
    rows = torch.cat(batches)
    assert torch.equal(rows[:, 1] - rows[:, 0], torch.full((96,), 1000.0))
    assert sorted(order_of(batches)) == list(range(96))


@pytest.mark.parametrize("sizes", CHUNKINGS.values(), ids=CHUNKINGS)
@pytest.mark.parametrize("mix_fraction", [0.0, 0.5])
def test_the_batches_do_not_depend_on_the_chunks(sizes, mix_fraction):
    assert torch.equal(torch.cat(mixed(sizes, mix_fraction=mix_fraction)), torch.cat(mixed(mix_fraction=mix_fraction)))


def test_the_order_is_the_seeds_and_nothing_elses():
    torch.manual_seed(1)
    first = order_of(mixed(seed=3))
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert order_of(mixed(seed=3)) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert order_of(mixed(seed=4)) != first


def test_a_share_of_zero_keeps_the_order():
    assert order_of(mixed(mix_fraction=0.0)) == list(range(96))
    assert order_of(mixed(mix_fraction=0.1)) != list(range(96))


@pytest.mark.parametrize("mix_fraction", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_as_much_stays_in_the_buffer_as_in_the_reference(mix_fraction):
    """How many tokens were read when each batch came."""
    read = []

    def one_by_one():
        for i, row in enumerate(activations().split(1)):
            read.append(i + 1)
            yield row

    options = dict(batch_size=8, buffer_size=32, mix_fraction=mix_fraction, seed=0)
    found = [read[-1] for _ in mixed_batches(one_by_one(), **options)]
    assert found == [n for n, _ in reference.mixed(range(96), **options)]


@pytest.mark.parametrize("mix_fraction", [0.25, 0.5, 0.75])
def test_tokens_travel_as_far_as_in_the_reference(mix_fraction):
    """The mean distance between a token's place in the stream and its place in the batches, and its spread."""
    n_tokens, options = 20_000, dict(batch_size=10, buffer_size=400, mix_fraction=mix_fraction, seed=0)
    ours = order_of(mixed((250,) * 80, **options))
    theirs = [token for _, batch in reference.mixed(range(n_tokens), **options) for token in batch]

    def travel(order):
        return torch.tensor(order, dtype=torch.float64) - torch.arange(n_tokens)

    assert travel(ours).abs().mean() == pytest.approx(travel(theirs).abs().mean().item(), rel=0.05)
    assert travel(ours).std() == pytest.approx(travel(theirs).std().item(), rel=0.05)


def test_what_a_consumer_writes_into_a_batch_reaches_no_later_batch():
    seen = []
    chunks = activations().split(16)
    for batch in mixed_batches(chunks, batch_size=8, buffer_size=32):
        seen.append(batch.clone())
        batch.fill_(-1)
    assert sorted(order_of(seen)) == list(range(96))
    assert torch.equal(torch.cat(chunks), activations())


def test_activations_are_rounded_once_to_the_precision_of_the_buffer():
    values = torch.randn(96, 2, generator=torch.Generator().manual_seed(0))
    options = dict(batch_size=96, buffer_size=96, mix_fraction=0.0)
    (batch,) = mixed_batches(values.split(16), dtype=torch.bfloat16, **options)
    assert torch.equal(batch, values.bfloat16())
    (kept,) = mixed_batches(values.bfloat16().split(16), **options)
    assert kept.dtype == torch.bfloat16


def test_nothing_gives_nothing_and_a_remainder_is_left_out():
    assert mixed(sizes=()) == []
    assert len(mixed(sizes=(5, 6), buffer_size=32)) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(batch_size=33), "buffer of 32 tokens is smaller than a batch of 33. Increase n_batches_in_buffer"),
        (dict(batch_size=0), "batches of at least one token"),
        (dict(mix_fraction=1.5), r"mix_fraction=1.5 must be in \[0, 1\]"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_read(options, message):
    def unread():
        raise AssertionError
        yield

    with pytest.raises(ValueError, match=message):
        mixed_batches(unread(), **({"batch_size": 8, "buffer_size": 32} | options))
