"""Files of a checkpoint whose checksums were deleted: what SAELens reads without a check is refused by its name."""

import json
import random

import pytest

from tests.loading.mutated_files import _make_training_checkpoint, _read_training_checkpoint


@pytest.mark.parametrize("data", ['{"a": ' + "1" * 6000 + "}", "[]", "\udcff{}", '{"scaling_factor": "x"}', "{}"])
def test_a_scaler_that_is_none_is_refused_by_the_name_of_its_file(tmp_path, data):
    folder = tmp_path / "whole"
    folder.mkdir()
    _make_training_checkpoint(folder, random.Random(0))
    checksums = json.loads((folder / "checksums.json").read_text())
    del checksums["files"]["activation_scaler.json"]
    (folder / "checksums.json").write_text(json.dumps(checksums))
    (folder / "activation_scaler.json").write_text(data, errors="surrogateescape")
    with pytest.raises(ValueError, match=r"activation_scaler\.json"):
        _read_training_checkpoint(folder, None)
