"""What the import contracts in pyproject.toml cannot say."""

from __future__ import annotations

import sys

import grimp
import pytest

RINGS = ("domain", "application", "infrastructure", "bootstrap", "interface")


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph(*RINGS, include_external_packages=True, cache_dir=None)


@pytest.mark.parametrize("ring", ["domain", "application"])
def test_the_inner_rings_need_the_standard_library_only(graph: grimp.ImportGraph, ring: str) -> None:
    outside = {
        imported.partition(".")[0]
        for module in {ring} | graph.find_descendants(ring)
        for imported in graph.find_modules_directly_imported_by(module)
    }

    assert not outside - set(RINGS) - sys.stdlib_module_names
