"""The columns of Neuronpedia's database that its import fills."""

TEXT, FLOAT, INT, BOOL = "text", "double precision", "integer", "boolean"
TEXTS, FLOATS = [TEXT], [FLOAT]
# Columns of Neuronpedia's tables that it imports; those that have no default and are not null.
COLUMNS = {
    "features": {
        **dict.fromkeys(("modelId", "layer", "index", "sourceSetName", "creatorId", "vectorLabel", "hookName"), TEXT),
        **dict.fromkeys(("maxActApprox", "frac_nonzero", "vectorDefaultSteerStrength"), FLOAT),
        **dict.fromkeys(("pos_str", "neg_str"), TEXTS),
        **dict.fromkeys(("pos_values", "neg_values", "vector", "decoder_weights_dist"), FLOATS),
        **{f"{name}_hist_data_bar_{part}": FLOATS for name in ("freq", "logits") for part in ("heights", "values")},
        "hasVector": BOOL,
    },
    "activations": {
        **dict.fromkeys(("id", "modelId", "layer", "index", "creatorId", "dataIndex", "dataSource"), TEXT),
        **dict.fromkeys(("maxValue", "minValue", "binMin", "binMax", "binContains", "dfaMaxValue"), FLOAT),
        **dict.fromkeys(("maxValueTokenIndex", "qualifyingTokenIndex", "dfaTargetIndex"), INT),
        **dict.fromkeys(("values", "dfaValues", "lossValues"), FLOATS),
        "tokens": TEXTS,
    },
    "explanations": dict.fromkeys(
        ("id", "modelId", "layer", "index", "description", "authorId", "notes", "typeName", "explanationModelName"),
        TEXT,
    ),
    "release": {
        **dict.fromkeys(("name", "description", "descriptionShort", "creatorName", "creatorId", "visibility"), TEXT),
        "urls": TEXTS,
    },
    "model": {
        **dict.fromkeys(("id", "displayName", "displayNameShort", "creatorId", "visibility", "owner", "website"), TEXT),
        **dict.fromkeys(("layers", "neuronsPerLayer", "dimension"), INT),
        "instruct": BOOL,
    },
    "sourceset": {
        **dict.fromkeys(("modelId", "name", "description", "creatorName", "creatorId", "visibility"), TEXT),
        "releaseName": TEXT,
        "urls": TEXTS,
    },
    "source": {
        **dict.fromkeys(("id", "modelId", "setName", "creatorId", "visibility", "dataset", "notes", "hfRepoId"), TEXT),
        **dict.fromkeys(("num_prompts", "num_tokens_in_prompt"), INT),
    },
}
DEMANDED = {
    "features": {"modelId", "layer", "index"},
    "activations": {"id", "modelId", "layer", "index", "creatorId", "maxValue", "maxValueTokenIndex", "minValue"},
    "explanations": {"id", "modelId", "layer", "index", "description", "authorId"},
    "release": {"name", "description", "creatorName", "creatorId"},
    "model": {"id", "creatorId", "layers", "neuronsPerLayer", "owner"},
    "sourceset": {"modelId", "name", "description", "creatorName", "creatorId"},
    "source": {"id", "modelId", "setName", "creatorId"},
}


def is_a(value, kind):
    if isinstance(kind, list):
        return isinstance(value, list) and all(is_a(entry, kind[0]) for entry in value)
    types = {TEXT: str, FLOAT: (int, float), INT: int, BOOL: bool}
    return isinstance(value, types[kind]) and (kind is BOOL or not isinstance(value, bool))
