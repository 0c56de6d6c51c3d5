"""What ranks that share a sequence send one another: the links that attention uses, and torch's own."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from afnext.errors import AfnextError

DIMENSIONS = ("ring", "ulysses")
"""The names of the mesh's dimensions, outer first: Ulysses ranks are neighbours."""


class Work(Protocol):
    """A message under way."""

    def wait(self) -> None:
        """Until it has arrived: on CUDA the current stream waits, the host does not. At once if it has been
        waited for."""


class Link(Protocol):
    """A rank's place among the ranks that share a sequence, and its ways to the others.

    Every rank must make the same calls in the same order. Buffers stay as they are until ``wait`` returns.
    """

    ulysses: int
    ring: int
    rank: int

    def all_to_all(
        self, received: Tensor, sent: Tensor, received_rows: Sequence[int], sent_rows: Sequence[int]
    ) -> Work:
        """Send each Ulysses rank its rows of ``sent``, which lie one after another, and receive the like."""

    def shift(self, received: Sequence[Tensor], sent: Sequence[Tensor]) -> Work:
        """Send to the next ring rank and receive from the one before."""


class Done:
    """Nothing is under way."""

    def wait(self) -> None:
        """Nothing to wait for."""


Awaits = Callable[[int, str], None]
"""Told what the host waits for: a message's number, as all ranks of a link count them, and its name; "" for
the name when it has come."""


class GroupWork:
    """torch's own requests of a link's n-th call, each with what it is."""

    def __init__(self, link: GroupLink, number: int, requests: Sequence[tuple[Any, str]]) -> None:
        self.link, self.number, self.requests = link, number, requests

    def wait(self) -> None:
        link, began = self.link, time.perf_counter()
        for request, what in self.requests:
            link.awaits(self.number, what)
            try:
                if link.seconds is None:
                    request.wait()
                else:
                    request.wait(timedelta(seconds=link.seconds))
            except RuntimeError as error:
                reason = str(error).splitlines()[0]
                raise AfnextError(
                    f"rank {dist.get_rank()}: {what} did not come to an end: {reason}"
                ) from error
        if self.requests:
            link.awaits(self.number, "")
        self.requests = ()
        link.waited += time.perf_counter() - began


class GroupLink:
    """The process groups of a torch mesh.

    NCCL's messages run on streams of its own, and ``wait`` makes the current stream wait for them by an
    event: the host never does.

    Args:
        mesh: of two dimensions called "ring" and "ulysses".
        timeout: seconds after which a message under way is an error, where the host waits (gloo).
        awaits: told what the host waits for.

    Attributes:
        seconds: the timeout; None where the host does not wait.
        waited: seconds that the host waited for messages.
    """

    def __init__(
        self, mesh: DeviceMesh, timeout: float = 600.0, awaits: Awaits = lambda number, what: None
    ) -> None:
        if mesh.mesh_dim_names != DIMENSIONS:
            raise ValueError(
                f"GroupLink: mesh must have dimensions {DIMENSIONS}, got {mesh.mesh_dim_names}"
            )
        self.ring, self.ulysses = mesh.size(0), mesh.size(1)
        self._ring, self._ulysses = mesh.get_group("ring"), mesh.get_group("ulysses")
        ring_rank, ulysses_rank = mesh.get_local_rank("ring"), mesh.get_local_rank("ulysses")
        self.rank = ring_rank * self.ulysses + ulysses_rank
        ranks = dist.get_process_group_ranks(self._ring)
        self._next = ranks[(ring_rank + 1) % self.ring]
        self._before = ranks[ring_rank - 1]
        self.seconds = None if dist.get_backend(self._ring) == "nccl" else timeout
        self._peers = dist.get_process_group_ranks(self._ulysses)
        self.awaits, self.waited = awaits, 0.0
        self._count = 0

    def take_waited(self) -> float:
        """Seconds that the host waited for messages since the last call; on CUDA it waits for none."""
        waited, self.waited = self.waited, 0.0
        return waited

    def all_to_all(
        self, received: Tensor, sent: Tensor, received_rows: Sequence[int], sent_rows: Sequence[int]
    ) -> Work:
        request = dist.all_to_all_single(
            received, sent, list(received_rows), list(sent_rows), group=self._ulysses, async_op=True
        )
        return self._work([request], [f"the exchange of heads among ranks {self._peers}"])

    def shift(self, received: Sequence[Tensor], sent: Sequence[Tensor]) -> Work:
        # Receives first: gloo then has somewhere to put what comes early.
        receives = [
            dist.P2POp(dist.irecv, x, self._before, self._ring) for x in received if x.numel()
        ]
        sends = [dist.P2POp(dist.isend, x, self._next, self._ring) for x in sent if x.numel()]
        whats = [f"the ring's message from rank {self._before}"] * len(receives)
        whats += [f"the ring's message to rank {self._next}"] * len(sends)
        requests = dist.batch_isend_irecv(receives + sends) if whats else []
        if len(requests) < len(whats):  # NCCL has one for all
            both = f"the ring's message from rank {self._before} or to rank {self._next}"
            whats = [both] * len(requests)
        return self._work(requests, whats)

    def _work(self, requests: Sequence[Any], whats: Sequence[str]) -> Work:
        """Counted, whether or not this rank has anything to wait for."""
        self._count += 1
        return GroupWork(self, self._count, list(zip(requests, whats, strict=True)))


class Alone:
    """The link of one rank by itself."""

    ulysses = ring = 1
    rank = 0

    def all_to_all(
        self, received: Tensor, sent: Tensor, received_rows: Sequence[int], sent_rows: Sequence[int]
    ) -> Work:
        received.copy_(sent)
        return Done()

    def shift(self, received: Sequence[Tensor], sent: Sequence[Tensor]) -> Work:
        for to, x in zip(received, sent, strict=True):
            to.copy_(x)
        return Done()


_links: dict[Any, dict[tuple[int, int], Link]] = {}
"""By torch's default group: the present one."""


def world_link(ulysses: int, ring: int) -> Link:
    """The link over all processes of torch's default group, made at the first call and kept until there is
    another group.

    Raises:
        ValueError: the group has another number of ranks.
    """
    if not dist.is_initialized():
        _links.clear()
        if ulysses * ring != 1:
            raise ValueError(
                f"attention: plan has ulysses {ulysses} x ring {ring} ranks, but torch.distributed is "
                "not initialised: start with torchrun, or give link"
            )
        return Alone()
    world = dist.get_world_size()
    if world != ulysses * ring:
        raise ValueError(
            f"attention: plan has ulysses {ulysses} x ring {ring} ranks, but the process group has "
            f"{world} (seen by rank {dist.get_rank()})"
        )
    if dist.group.WORLD not in _links:
        _links.clear()  # of groups that are destroyed
        _links[dist.group.WORLD] = {}
    links, key = _links[dist.group.WORLD], (ulysses, ring)
    if key not in links:
        device = "cuda" if torch.cuda.is_available() and dist.get_backend() == "nccl" else "cpu"
        mesh = init_device_mesh(device, (ring, ulysses), mesh_dim_names=DIMENSIONS)
        links[key] = GroupLink(mesh)
    return links[key]
