"""Which atoms fire only where another does, and by how much the child moves the parent: loops over dense codes."""


def nested(codes, min_inside=0.9, max_cover=0.8, min_tokens=20):
    """(parent, child) -> slope of the parent's code on the child's, over the tokens of the parent."""
    found = {}
    n = len(codes[0])
    for parent in range(n):
        rows = [row for row in codes if row[parent] > 0]
        for child in range(n):
            n_child = sum(row[child] > 0 for row in codes)
            together = sum(row[child] > 0 for row in rows)
            if parent == child or together < min_tokens:
                continue
            if together < min_inside * n_child or together > max_cover * len(rows):
                continue
            mean_parent = sum(row[parent] for row in rows) / len(rows)
            mean_child = sum(row[child] for row in rows) / len(rows)
            covariance = sum((row[parent] - mean_parent) * (row[child] - mean_child) for row in rows)
            variance = sum((row[child] - mean_child) ** 2 for row in rows)
            found[parent, child] = covariance / variance
    return found
