"""What a planted world says its activations are, one concept at a time."""


def clean_activations(coefficients, directions, offset):
    """h^m = sum_i c_i^m u_i^m + offset^m, without the noise; one stacked row per token.

    coefficients[t][i][m], directions[m][i] and the stacked offset.
    """
    rows = []
    for token in coefficients:
        stacked = []
        for m, model_directions in enumerate(directions):
            part = [0.0] * len(model_directions[0])
            for shares, direction in zip(token, model_directions, strict=True):
                part = [value + shares[m] * u for value, u in zip(part, direction, strict=True)]
            stacked += part
        rows.append([value + shift for value, shift in zip(stacked, offset, strict=True)])
    return rows


def base_presence(coefficients, i):
    """How much of concept i the base model has when the chat model has it, over how much the chat model has."""
    base = sum(token[i][0] for token in coefficients if token[i][1] > 0)
    chat = sum(token[i][1] for token in coefficients if token[i][1] > 0)
    return base / chat


def cosine_to_span(row, directions):
    """Length of a unit row's projection on the span of directions, negative if it points away from their sum.

    By Gram-Schmidt, one direction after the other.
    """
    basis, towards, squared = [], 0.0, 0.0
    for direction in directions:
        towards += sum(a * b for a, b in zip(row, direction, strict=True))
        rest = list(direction)
        for unit in basis:
            part = sum(a * b for a, b in zip(rest, unit, strict=True))
            rest = [a - part * b for a, b in zip(rest, unit, strict=True)]
        length = sum(a * a for a in rest) ** 0.5
        basis.append([a / length for a in rest])
    for unit in basis:
        squared += sum(a * b for a, b in zip(row, unit, strict=True)) ** 2
    return squared**0.5 if towards >= 0 else -(squared**0.5)


def group_presence(acts, coefficients, members):
    """sum_t f c^base / sum_t f c^chat, the coefficients of all members summed."""
    sums = [0.0, 0.0]
    for f, token in zip(acts, coefficients, strict=True):
        for i in members:
            for m in (0, 1):
                sums[m] += f * token[i][m]
    return sums[0] / sums[1]
