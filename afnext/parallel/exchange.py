"""Rows that one rank computed and another needs: an exchange through which gradients flow back.

Each rank has some consecutive rows of a table (features of the windows that it encoded) and needs others
(those of the audio tokens in its part of the sequence). A collective without autograd would bring the rows
and lose their gradients: torch's functional all-to-all keeps them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed._functional_collectives import all_to_all_single_autograd


@dataclass(frozen=True, eq=False)
class RowExchange:
    """Which rows go where; made of the same arguments on every rank.

    Args:
        owned: how many rows of the table each rank has, rank after rank.
        wanted: for each rank int64 ``[n]``, the rows of the table that it needs, in its order, any row any
            number of times.
    """

    owned: Sequence[int]
    wanted: Sequence[Tensor]

    def __post_init__(self) -> None:
        total = sum(self.owned)
        if len(self.owned) != len(self.wanted):
            raise ValueError(
                f"RowExchange: owned is of {len(self.owned)} ranks, wanted of {len(self.wanted)}"
            )
        for rank, rows in enumerate(self.wanted):
            if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < total:
                raise ValueError(f"RowExchange: wanted[{rank}] must be rows 0 to {total - 1}")

    def __call__(self, rows: Tensor, group: dist.ProcessGroup) -> Tensor:
        """Give and take.

        Args:
            rows: ``[owned[rank], width]``, this rank's.
            group: of as many ranks as ``owned`` has.

        Returns:
            ``[len(wanted[rank]), width]``. A row's gradient is the sum of all ranks' that took it.
        """
        rank, size = dist.get_rank(group), dist.get_world_size(group)
        if size != len(self.owned):
            raise ValueError(f"RowExchange: owned is of {len(self.owned)} ranks, group of {size}")
        if rows.shape[0] != self.owned[rank]:
            raise ValueError(
                f"RowExchange: rows must be {self.owned[rank]} on rank {rank}, got {list(rows.shape)}"
            )
        firsts = [0, *accumulate(self.owned)]
        # A row crosses once to a rank, however often that needs it.
        needed = [torch.unique(w.cpu()) for w in self.wanted]
        parts = [n[(n >= firsts[rank]) & (n < firsts[rank + 1])] - firsts[rank] for n in needed]
        edges = torch.searchsorted(needed[rank], torch.tensor(firsts))
        sent = rows.index_select(0, torch.cat(parts).to(rows.device))
        received, counts = torch.diff(edges).tolist(), [len(part) for part in parts]
        taken = all_to_all_single_autograd(sent, received, counts, group)
        place = torch.searchsorted(needed[rank], self.wanted[rank].cpu())
        return taken.index_select(0, place.to(rows.device))
