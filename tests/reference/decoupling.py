"""Latent Decoupling by its definition: a graph searched node by node, and tokens counted one by one."""


def cosine(a, b):
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    lengths = sum(x * x for x in a) ** 0.5 * sum(y * y for y in b) ** 0.5
    return dot / lengths if lengths > 0 else 0.0


def raw_pairs(decoders, labels, dead, min_cosine):
    """(chat-only latent, base-only latent), with decoders[j] = (base direction, chat direction)."""
    live = [j for j in range(len(decoders)) if not dead[j]]
    return [
        (i, j)
        for i in live
        for j in live
        if labels[i] == "chat_only" and labels[j] == "base_only" and cosine(decoders[i][1], decoders[j][0]) > min_cosine
    ]


def edges(decoders, labels, dead, min_cosine):
    """Between nodes (model, latent): 0 is the base model, 1 the chat model."""
    nodes = [(m, j) for j in range(len(decoders)) for m in (0, 1)]
    starts = [(1, j) for j, label in enumerate(labels) if label == "chat_only"]
    starts += [(0, j) for j, label in enumerate(labels) if label == "base_only"]
    found = set()
    for start in starts:
        for end in nodes:
            m, j = end
            if dead[start[1]] or dead[j] or start[1] == j:
                continue
            if (labels[j] == "chat_only" and m == 0) or (labels[j] == "base_only" and m == 1):
                continue
            if cosine(decoders[start[1]][start[0]], decoders[j][m]) > min_cosine:
                found.add(frozenset([start, end]))
    return found


def components(graph):
    """Sets of nodes that edges connect."""
    unseen = {node for edge in graph for node in edge}
    while unseen:
        component, frontier = set(), [min(unseen)]
        while frontier:
            node = frontier.pop()
            if node in component:
                continue
            component.add(node)
            frontier += [other for edge in graph if node in edge for other in edge if other != node]
        unseen -= component
        yield component


def isolated_pairs(decoders, labels, dead, min_cosine):
    """Components of two nodes, one of a chat-only and one of a base-only latent."""
    found = []
    for component in components(edges(decoders, labels, dead, min_cosine)):
        by_label = {labels[j]: j for _, j in component}
        if len(component) == 2 and set(by_label) == {"chat_only", "base_only"}:
            found.append((by_label["chat_only"], by_label["base_only"]))
    return sorted(found)


def divergence(first, second, highest, high, low):
    """(divergence, tokens on which either is high, the first alone, the second alone) of two lists of scores."""
    high_first = {t for t, v in enumerate(first) if v > high * highest}
    high_second = {t for t, v in enumerate(second) if v > high * highest}
    only_first = {t for t in high_first if second[t] < low * highest}
    only_second = {t for t in high_second if first[t] < low * highest}
    n = len(high_first | high_second)
    alone = len(only_first) + len(only_second)
    return (alone / n if n else float("nan")), n, len(only_first), len(only_second)
