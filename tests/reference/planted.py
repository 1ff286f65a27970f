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
