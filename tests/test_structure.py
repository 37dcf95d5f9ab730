"""Rooms and files of the package import downwards only."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILES = {
    '.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__'): (
        path
    )
    for path in (ROOT / 'mmmpq').rglob('*.py')
}
# What a search's Runner-bound parts still say of each other, for types alone.
KNOWN = {
    ('mmmpq.hooks.choice', 'mmmpq.hooks.search_hook'),
    ('mmmpq.hooks.records', 'mmmpq.hooks.search_hook'),
    ('mmmpq.hooks.resumed', 'mmmpq.hooks.search_hook'),
    ('mmmpq.hooks.search_result', 'mmmpq.hooks.search_hook'),
}


def imports(path):
    """Modules of ours that a file imports, within functions and for types as well."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                name = f'{node.module}.{alias.name}'
                yield name if name in FILES else node.module


EDGES = {
    (name, other)
    for name, path in FILES.items()
    for other in imports(path)
    if other in FILES and other != name
}


def room(name):
    return '.'.join(name.split('.')[:2])


def circle(edges):
    """One circle among ``edges``, if there is any."""
    graph = {}
    for one, other in edges:
        graph.setdefault(one, set()).add(other)
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        return error.args[1]
    return None


def test_no_circle_of_files():
    assert circle(EDGES - KNOWN) is None


def test_no_circle_of_rooms():
    # The face imports what is asked of it, and everybody asks it for compat or moved.
    edges = {(room(a), room(b)) for a, b in EDGES}
    assert (
        circle({(a, b) for a, b in edges if 'mmmpq' not in (a, b) and a != b}) is None
    )


def test_costs_and_losses_are_ground_floors():
    below = {'compat', 'costs', 'layers', 'losses', 'policy', 'registry', 'units'}
    below |= {'fileio', 'randomness', 'moved', 'quantizers', 'transfer'}
    for one, other in EDGES:
        if room(one) in ('mmmpq.costs', 'mmmpq.losses') and other != 'mmmpq':
            assert room(other).removeprefix('mmmpq.') in below, f'{one} -> {other}'


def test_tools_are_faces():
    for path in ROOT.glob('tools/**/*.py'):
        assert len(path.read_text().splitlines()) <= 25, path
