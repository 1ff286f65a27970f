"""Alignment of two tokenizations of one text, character by character."""


def ends(tokenizer, ids):
    """Length of the text after each token, from decoding all tokens up to it; None within a character."""
    found = []
    for n in range(1, len(ids) + 1):
        text, before = tokenizer.decode(ids[:n]), tokenizer.decode(ids[: n - 1])
        found.append(None if text.endswith("\ufffd") or text == before else len(text))
    return found


def pairs(first, second):
    """Places (i, j) of tokens that end at one character, given the ends of both; the last of several with one end."""
    paired = []
    for i, end in enumerate(first):
        if end is None or end in first[i + 1 :]:
            continue
        for j, other in enumerate(second):
            if other == end and end not in second[j + 1 :]:
                paired.append((i, j))
    return paired
