"""Non-negative orthogonal matching pursuit of one token, and least squares by Gaussian elimination."""


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def solve(matrix, right):
    """Solve a linear system by elimination with pivots."""
    n = len(matrix)
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    for i in range(n):
        pivot = max(range(i, n), key=lambda j: abs(rows[j][i]))
        rows[i], rows[pivot] = rows[pivot], rows[i]
        for j in range(i + 1, n):
            factor = rows[j][i] / rows[i][i]
            rows[j] = [a - factor * b for a, b in zip(rows[j], rows[i], strict=True)]
    solution = [0.0] * n
    for i in reversed(range(n)):
        solution[i] = (rows[i][n] - sum(rows[i][j] * solution[j] for j in range(i + 1, n))) / rows[i][i]
    return solution


def pursue(x, units, min_gain, max_atoms, ridge=1e-5):
    """Coefficients by atom: take the most correlated atom, fit all again, clamp at 0, go on."""
    chosen, coefficients, residual = [], [], list(x)
    while len(chosen) < max_atoms:
        correlations = [dot(residual, unit) for unit in units]
        best = max(range(len(units)), key=lambda j: correlations[j])
        if correlations[best] <= 0 or correlations[best] ** 2 <= min_gain or best in chosen:
            break
        chosen.append(best)
        gram = [[dot(units[a], units[b]) + ridge * (a == b) for b in chosen] for a in chosen]
        coefficients = [max(c, 0.0) for c in solve(gram, [dot(units[j], x) for j in chosen])]
        residual = list(x)
        for j, coefficient in zip(chosen, coefficients, strict=True):
            residual = [r - coefficient * u for r, u in zip(residual, units[j], strict=True)]
    return dict(zip(chosen, coefficients, strict=True))


def refit(x, codes, decoder, ridge=1e-3, writes=None):
    """Least-squares decoder and bias; the ridge is on the change of the decoder, unused atoms keep theirs.

    x[i] is a token, codes[i][j] its coefficient of atom j. Where writes[j][i] is 0, the decoder keeps its entry.
    """
    n, d_sae, width = len(x), len(decoder), len(x[0])
    used = [j for j in range(d_sae) if sum(code[j] > 0 for code in codes) >= 2]
    result = [list(row) for row in decoder]
    means = {j: sum(code[j] for code in codes) / n for j in range(d_sae)}
    for i in range(width):
        fitted = [j for j in used if writes is None or writes[j][i]]
        normal = [
            [sum((code[a] - means[a]) * (code[b] - means[b]) for code in codes) + ridge * (a == b) for b in fitted]
            for a in fitted
        ]
        missing = [x[t][i] - sum(codes[t][j] * decoder[j][i] for j in range(d_sae)) for t in range(n)]
        right = [sum((codes[t][j] - means[j]) * missing[t] for t in range(n)) for j in fitted]
        for j, change in zip(fitted, solve(normal, right) if fitted else [], strict=True):
            result[j][i] += change
    bias = [
        sum(x[t][i] - sum(codes[t][j] * result[j][i] for j in range(d_sae)) for t in range(n)) / n for i in range(width)
    ]
    return result, bias
