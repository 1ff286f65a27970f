"""The operations on pairs of token and latent, one number at a time, on nested lists."""

import math


def gather_sum(table, index, starts, weights):
    ends = [*starts[1:], len(index)]
    return [
        [sum(weights[p] * table[index[p]][i] for p in range(start, end)) for i in range(len(table[0]))]
        for start, end in zip(starts, ends, strict=True)
    ]


def gather_dot(rows, table, row, column):
    return [math.fsum(a * b for a, b in zip(rows[i], table[j], strict=True)) for i, j in zip(row, column, strict=True)]


def indices_above(tile, bounds):
    found, flat = [], 0
    for entries in tile:
        for entry, bound in zip(entries, bounds, strict=True):
            if entry > bound:
                found.append(flat)
            flat += 1
    return found


def run_starts(index, n):
    return [sum(value < run for value in index) for run in range(n)]
