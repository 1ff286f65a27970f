"""Families of atoms and the directions of their tokens, one token after another, in plain Python."""

from math import sqrt


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def unit(a):
    length = sqrt(dot(a, a))
    return [x / length for x in a]


def less(a, size, b):
    return [x - size * y for x, y in zip(a, b, strict=True)]


def families(codes, min_inside=0.9, min_tokens=20):
    """[(parent, children)], the strongest parents first; an atom is in one family at most."""
    n = len(codes[0])
    tokens = [[t for t, row in enumerate(codes) if row[j] > 0] for j in range(n)]
    strength = [sum(row[j] ** 2 for row in codes) for j in range(n)]
    found, taken = [], set()
    for parent in sorted(range(n), key=lambda j: -strength[j]):
        children = [
            j
            for j in range(n)
            if j not in taken | {parent}
            and len(tokens[j]) >= min_tokens
            and len(set(tokens[j]) & set(tokens[parent])) >= min_inside * len(tokens[j])
        ]
        if parent not in taken and children:
            found.append((parent, children))
            taken |= {parent, *children}
    return found


def noise_limit(noise, width):
    return noise**2 * (sqrt(max(width - 1, 1)) + 1) ** 2


def distance(token, direction):
    """Squared distance of a token from a line."""
    off = less(token, dot(token, direction), direction)
    return dot(off, off)


def shared_direction(tokens, noise, width, refinements=3):
    """The direction of most tokens, and how many share it."""
    limit = noise_limit(noise, width)

    def neighbours(token):
        direction = unit(token)
        ratio = [dot(other, other) / dot(token, token) for other in tokens]
        return sum(
            distance(other, direction) <= limit * (1 + r) and dot(other, direction) > 0
            for other, r in zip(tokens, ratio, strict=True)
        )

    direction = unit(max(tokens, key=neighbours))
    for _ in range(refinements):
        sharing = [t for t in tokens if distance(t, direction) <= limit and dot(t, direction) > 0]
        direction = unit([sum(column) for column in zip(*sharing, strict=True)])
    return direction, len(sharing)


def directions(tokens, width, noise, min_gain, alone=0.08, peak=0.55, least_share=0.02, least_tokens=4):
    """Directions of a family of `width` atoms from what it explains: the parent's, then one for each child."""
    found, left = [], tokens
    while len(found) < width:
        limit = max(min_gain, noise_limit(noise, width))
        loud = [t for t in left if not found or dot(t, t) > limit]
        least = max(least_tokens, (least_share if found else alone) * len(tokens))
        if len(loud) < least:
            break
        direction, n_sharing = shared_direction(loud, noise, width)
        wide = [t for t in loud if distance(t, direction) <= 4 * noise_limit(noise, width) and dot(t, direction) > 0]
        if n_sharing < least or (not found and n_sharing < peak * len(wide)):
            break
        found.append(direction)
        left = [less(t, max(dot(t, direction), 0), direction) for t in left]
    return found


def written(codes, decoder, residual, atoms, most_tokens=512):
    """What a family should explain on the tokens of its parent, without what lies outside its span."""
    basis = []
    for atom in atoms:
        row = decoder[atom]
        for axis in basis:
            row = less(row, dot(row, axis), axis)
        basis.append(unit(row))
    tokens = []
    for code, rest in zip(codes, residual, strict=True):
        if code[atoms[0]] > 0 and len(tokens) < most_tokens:
            token = rest
            for atom in atoms:
                token = less(token, -code[atom], decoder[atom])
            tokens.append([sum(dot(token, axis) * axis[i] for axis in basis) for i in range(len(token))])
    return tokens
