"""No mutated file gives a wrong result or a crash of another kind; benchmarks/mutated_files.py tries many more."""

import itertools
import shutil
from collections import Counter
from functools import partial

import pytest

import sae_lens_crosscoder as slc
from tests.loading.foreign_files import LAYOUTS
from tests.loading.mutated_files import LOADERS, outcomes
from tests.loading.mutations import KINDS, _rewrite

N_PER_KIND = 3


@pytest.mark.parametrize("name", LOADERS)
def test_every_loader_refuses_or_warns_by_name_or_loads_right(name, tmp_path):
    counts = Counter()
    for kind, outcome, found in outcomes(name, N_PER_KIND * len(KINDS), seed=0, folder=tmp_path):
        assert outcome in ("refused", "told", "loaded_right"), (kind, outcome, found)
        counts[outcome] += 1
    assert counts["refused"] > 0


CHANGES = (lambda tensor: tensor.bool(), lambda tensor: tensor.transpose(0, -1)[:0].clone())


def n_tensors(path):
    names = []
    _rewrite(path, lambda tensors: names.extend(tensors) or tensors)
    return len(names)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_tensor_that_is_empty_or_of_no_numbers_is_refused_by_the_name_of_the_file(name, tmp_path):
    """Also where only the config that is made of the file is wrong."""
    LAYOUTS[name].write(tmp_path / "whole")
    files = [path.name for path in (tmp_path / "whole").iterdir() if path.suffix in (".safetensors", ".pt")]
    places = [(file, n) for file in files for n in range(n_tensors(tmp_path / "whole" / file))]
    for (file, n), change in itertools.product(places, CHANGES):
        folder = tmp_path / "changed"
        shutil.copytree(tmp_path / "whole", folder)
        _rewrite(folder / file, partial(changed, n, change))
        message = refusal(folder, LAYOUTS[name].options)
        assert message is None or any(each.name in message for each in (folder, *folder.iterdir()))
        shutil.rmtree(folder)


def refusal(folder, options):
    try:
        slc.load(folder, **options)
    except ValueError as error:
        return str(error)
    return None


def changed(n, change, tensors):
    """The tensors with the n-th changed, unless it is a number."""
    name = list(tensors)[n]
    return {**tensors, name: change(tensors[name]) if tensors[name].ndim else tensors[name]}
