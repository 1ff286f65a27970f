"""Regression of codes on tokens, one latent after another, in plain Python."""


def solve(matrix, right):
    """Solve a linear system by Gauss-Jordan elimination with pivoting."""
    n = len(right)
    rows = [[*matrix[i], right[i]] for i in range(n)]
    for column in range(n):
        pivot = max(range(column, n), key=lambda i: abs(rows[i][column]))
        rows[column], rows[pivot] = rows[pivot], rows[column]
        rows[column] = [value / rows[column][column] for value in rows[column]]
        for i in range(n):
            if i != column:
                factor = rows[i][column]
                rows[i] = [a - factor * b for a, b in zip(rows[i], rows[column], strict=True)]
    return [row[n] for row in rows]


def reading_rows(x, codes, decoder, ridge=1e-3, least_tokens=20, least_read=0.1, along_over=None):
    """The row that predicts each code best, with `<row, atom> = 1`; along the atom if it is rare or unpredictable.

    along_over: squared length of the whole atom, of which x and the decoder hold what is read.
    """
    n, width = len(x), len(x[0])
    mean = [sum(token[i] for token in x) / n for i in range(width)]
    centred = [[token[i] - mean[i] for i in range(width)] for token in x]
    second = [[sum(token[i] * token[j] for token in centred) for j in range(width)] for i in range(width)]
    load = ridge * sum(second[i][i] for i in range(width)) / width
    for i in range(width):
        second[i][i] += load
    rows = []
    for latent, atom in enumerate(decoder):
        f = [code[latent] for code in codes]
        average = sum(f) / n
        row = solve(second, [sum((v - average) * t[i] for v, t in zip(f, centred, strict=True)) for i in range(width)])
        read = sum(a * b for a, b in zip(row, atom, strict=True))
        if sum(value > 0 for value in f) < least_tokens or read <= least_read:
            row, read = atom, along_over or sum(value * value for value in atom)
        rows.append([value / read for value in row])
    return rows
