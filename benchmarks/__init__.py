"""Measurements of every op and path beside its peers: ``python -m benchmarks NAME``, ``afnext bench NAME``.

A benchmark is a module of this package with a docstring (its first line is what ``--list`` shows) and a
generator ``cases()`` of :class:`Case`. The framework does the rest: contestants run in turn in one
process and are shown with median, quartiles, rates, and the share of this machine's peaks, which are
measured in the same run. README.md beside this file shows how a case is added.
"""

from .case import Case, rotated

__all__ = ["Case", "rotated"]
