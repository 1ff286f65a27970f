"""Packing as its definition says it, token by token."""


def concatenated(documents, context_size, bos=None, separator=None):
    """Full contexts only: `bos` first in each, `separator` between the documents of one, neither twice in a row."""
    contexts, context = [], []
    for document in documents:
        if context and separator is not None:
            context.append(separator)
        for token in document:
            if len(context) == context_size:
                contexts.append(context)
                context = []
            if not context and bos is not None:
                context.append(bos)
            context.append(token)
        if len(context) == context_size:
            contexts.append(context)
            context = []
    return contexts


def one_document(documents, context_size, padding, bos=None):
    contexts = []
    for document in documents:
        context = ([] if bos is None else [bos]) + list(document)
        context = context[:context_size]
        contexts.append(context + [padding] * (context_size - len(context)))
    return contexts
