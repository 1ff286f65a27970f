"""No import leads back to the module that it came from, also inside a folder, in a function or under TYPE_CHECKING."""

import grimp
import networkx as nx

PACKAGE = "sae_lens_crosscoder"


def import_graph():
    graph = grimp.build_graph(PACKAGE, cache_dir=None)
    edges = [(module, target) for module in graph.modules for target in graph.find_modules_directly_imported_by(module)]
    return nx.DiGraph(edges)


def test_no_module_imports_itself_through_others():
    cycles = [sorted(part) for part in nx.strongly_connected_components(import_graph()) if len(part) > 1]
    assert cycles == []


def test_no_module_imports_a_package_that_contains_it():
    """A facade such as `training/__init__.py` imports its modules, so they cannot import it."""
    backwards = [edge for edge in import_graph().edges if edge[0].startswith(f"{edge[1]}.")]
    assert backwards == []
