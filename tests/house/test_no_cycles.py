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
