"""Measurements of every op and path beside its peers: ``python -m benchmarks``.

A case is a module of this package with a docstring (its first line is what the list shows) and a function
``run()`` that prints its table. Peers run in turn with ours in the same process.
"""
