"""A mixing buffer as a list of tokens, one token at a time."""

import random


def mixed(tokens, batch_size, buffer_size, mix_fraction, seed):
    """(tokens read so far, batch) for every batch: fill the list, shuffle, serve all but the share that stays."""
    order = random.Random(seed)
    kept = int(buffer_size * mix_fraction)
    buffer, read = [], 0
    for token in tokens:
        buffer.append(token)
        read += 1
        if len(buffer) == buffer_size:
            order.shuffle(buffer)
            serve_one_at_least = True
            while serve_one_at_least or len(buffer) - batch_size >= kept:
                serve_one_at_least = False
                yield read, [buffer.pop(0) for _ in range(batch_size)]
    order.shuffle(buffer)
    while len(buffer) >= batch_size:
        yield read, [buffer.pop(0) for _ in range(batch_size)]
