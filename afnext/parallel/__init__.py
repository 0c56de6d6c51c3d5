"""Sequences that several ranks share: plans, links and attention (Ulysses within a ring)."""

from .attention import SharedAttention, attention
from .bands import Mask
from .cost import Machine, Shape, choose, cost
from .exchange import RowExchange
from .link import Alone, GroupLink, Link, world_link
from .local import LocalLink, local_links, run_local
from .plan import Layout, SequencePlan

__all__ = [
    "Alone",
    "GroupLink",
    "Layout",
    "Link",
    "LocalLink",
    "Machine",
    "Mask",
    "RowExchange",
    "SequencePlan",
    "Shape",
    "SharedAttention",
    "attention",
    "choose",
    "cost",
    "local_links",
    "run_local",
    "world_link",
]
