"""Subnets are priced in the same small problems as searches."""

from tests.test_search.conftest import problem as problem
