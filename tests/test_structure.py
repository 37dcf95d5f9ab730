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
    assert circle(EDGES) is None


def test_no_circle_of_rooms():
    # The face imports what is asked of it, and everybody asks it for compat or moved.
    edges = {(room(a), room(b)) for a, b in EDGES}
    assert (
        circle({(a, b) for a, b in edges if 'mmmpq' not in (a, b) and a != b}) is None
    )


def test_costs_and_losses_are_ground_floors():
    below = {'compat', 'costs', 'layers', 'losses', 'policy', 'registry', 'units'}
    below |= {'arguments', 'fileio', 'randomness', 'moved', 'quantizers', 'transfer'}
    for one, other in EDGES:
        if room(one) in ('mmmpq.costs', 'mmmpq.losses') and other != 'mmmpq':
            assert room(other).removeprefix('mmmpq.') in below, f'{one} -> {other}'


# They change how MMEngine reads checkpoint files, whoever reads them.
CHECKPOINTS = {'mmmpq.compat', 'mmmpq.export.packed.untrusted'}


def test_the_engine_alone_knows_the_runner():
    """A verb may, where it is but a call of a Runner."""
    for name, path in FILES.items():
        if room(name) in ('mmmpq.engine', 'mmmpq.cli') or name in CHECKPOINTS:
            continue
        assert not any(m.startswith('mmengine.runner') for m in imports(path)), name


def test_nothing_but_verbs_stands_on_the_engine():
    for one, other in EDGES:
        if room(other) == 'mmmpq.engine':
            assert room(one) in ('mmmpq.engine', 'mmmpq.cli'), f'{one} -> {other}'


def test_tools_are_faces():
    for path in ROOT.glob('tools/**/*.py'):
        assert len(path.read_text().splitlines()) <= 25, path


def test_no_file_is_longer_than_300_lines():
    files = [*FILES.values(), *(ROOT / 'tools').rglob('*.py')]
    assert [p for p in files if p.read_text().count('\n') > 300] == []
