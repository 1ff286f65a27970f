"""Weak causality, one number at a time: a latent reads the hook of its group, and writes that one and later ones."""


def hook_of(latent, d_sae, n_hooks):
    """The group of a latent: the hooks divide the latents evenly, in order."""
    for hook in range(n_hooks):
        if latent < round(d_sae * (hook + 1) / n_hooks):
            return hook
    raise IndexError(latent)


def hook_of_nested(latent, level_ends, n_hooks):
    """Of levels that the hooks divide one by one."""
    first = 0
    for end in level_ends:
        if latent < end:
            return hook_of(latent - first, end - first, n_hooks)
        first = end
    raise IndexError(latent)


def masks(d_sae, widths, n_hooks, level_ends=None):
    """Of encoder and decoder rows (latent, d_in), 1 where a weight may differ from 0; a model's hooks lie together."""
    reads, writes = [], []
    for latent in range(d_sae):
        own = hook_of_nested(latent, level_ends or (d_sae,), n_hooks)
        read_row, written_row = [], []
        for source, width in enumerate(widths):
            hook = source % n_hooks
            for _ in range(width):
                read_row.append(1.0 if hook == own else 0.0)
                written_row.append(1.0 if hook >= own else 0.0)
        reads.append(read_row)
        writes.append(written_row)
    return reads, writes
