"""The processes of a run, as ``torchrun`` starts them, and how they are grouped for a stage."""

from __future__ import annotations

import faulthandler
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from afnext.errors import AfnextError
from afnext.model.config import TextConfig
from afnext.parallel import Alone, GroupLink, Link, Shape, choose
from afnext.training.config import RecipeError, StageConfig
from afnext.training.distributed import agreement
from afnext.training.distributed.watch import GONE, GRACE, OTHERS, SILENCE, Unwatched, Watch

PATIENCE = timedelta(days=1)
"""For what one process does while the others wait: training sets are made in hours."""
Value = TypeVar("Value")


@dataclass(frozen=True)
class Team:
    """A process's place in a stage: which of the step's batches are its own, and with whom it shares them.

    Attributes:
        data_rank, data_size: batches ``data_rank``, ``data_rank + data_size``, ... of a step are its own.
        link: ways to those who share its sequences.
        group: all of them, by their rank in ``link``; None where there is no other.
    """

    data_rank: int = 0
    data_size: int = 1
    link: Link = field(default_factory=Alone)
    group: dist.ProcessGroup | None = None

    @property
    def size(self) -> int:
        """Processes that share a sequence."""
        return self.link.ulysses * self.link.ring


class World:
    """All processes of a run; without ``torchrun`` one, for which nothing here does anything.

    Args:
        device: kind, ``"cpu"`` (gloo) or ``"cuda"`` (NCCL, and gloo for what is on the host).
        offload: whether gradients are on the host, and are added up there too.
        timeout: seconds that a message of a step may take.
        alike: what must be the same on all processes, by name, beside the code.

    Attributes:
        watch: over the processes that ``torchrun`` started.

    Raises:
        AfnextError: the processes cannot find one another, or one of them has something else than the first;
            with its rank.
    """

    def __init__(
        self,
        device: str,
        timeout: float = 600.0,
        offload: bool = False,
        alike: Mapping[str, str] | None = None,
    ) -> None:
        self.size, self.rank = int(os.environ.get("WORLD_SIZE", "1")), 0
        self.writing: dist.ProcessGroup | None = None
        self.owns = False
        self.timeout, self.offload, self.watch = timeout, offload, Unwatched()
        self.kind, self._given = torch.device(device).type, device
        if dist.is_initialized():
            self.size = dist.get_world_size()
        if self.size == 1:
            return
        mine = {**(alike or {}), **agreement.code()}
        if not dist.is_initialized():
            self.owns = True
            try:
                store = self._joined(mine)
            except (RuntimeError, ValueError) as error:
                raise AfnextError(f"cannot join the run's other processes: {error}") from None
        self.rank = dist.get_rank()
        self.host = dist.new_group(backend="gloo", timeout=PATIENCE)
        # Of its own: checkpoints are written by a thread, beside whatever else is said.
        self.writing = dist.new_group(backend="gloo", timeout=PATIENCE)
        self._teams: dict[tuple[int, int], Team] = {}
        if self.owns:
            self.watch = Watch(store, self.rank, self.size, min(SILENCE, timeout))
            return
        everyone = self.gathered(mine)
        for rank, theirs in enumerate(everyone):
            if why := agreement.other_than(everyone[0], rank, theirs):
                raise AfnextError(why)

    def _joined(self, mine: Mapping[str, str]) -> dist.Store:
        """Where all processes that ``torchrun`` started have met. Its store outlives those that died, whose
        addresses are there: each start has a part of it for itself.
        """
        found, rank, size = next(iter(dist.rendezvous("env://")))
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = dist.PrefixStore(f"start {attempt}", found)
        agreement.agree(store, rank, size, mine, self._patience)
        if self.kind == "cuda":
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        on_gpus = "cpu:gloo,cuda:nccl" if self.offload else "nccl"
        dist.init_process_group(
            on_gpus if self.kind == "cuda" else "gloo", store=store, rank=rank, world_size=size,
            timeout=self._patience,
        )  # fmt: skip
        return store

    @property
    def _patience(self) -> timedelta:
        """Of torch's own groups: the watch, which names who is late, comes first."""
        return timedelta(seconds=self.timeout + 2 * GRACE)

    def close(self) -> None:
        """Leave the others, if this object joined them."""
        if self.owns:
            self.wait()
            self.watch.close()
            dist.destroy_process_group()

    def reason(self, error: BaseException) -> BaseException:
        """For a run that ends with ``error``: the others are told. If it is of a message to another process
        that died or ended, an ``AfnextError`` that says which, and why. This process then ends, in
        ``GRACE + GONE`` seconds at most.
        """
        if not self.owns:
            return error
        # That torchrun wants it to end it knows. Groups without all their processes may not close.
        with suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        faulthandler.dump_traceback_later(GRACE + GONE, exit=True)
        message = isinstance(error, RuntimeError) or isinstance(error.__cause__, RuntimeError)
        if message and (why := self.watch.explain()):
            return AfnextError(f"rank {self.rank} ends: {why} ({_first_line(error)})")
        self.watch.failed(_first_line(error))
        return error

    @property
    def device(self) -> str:
        """This process's own: the GPU of its local rank."""
        many = self.kind == "cuda" and self.size > 1
        return f"cuda:{torch.cuda.current_device()}" if many else self._given

    def wait(self) -> None:
        """Until all are here."""
        if self.size > 1:
            with self.others():
                dist.barrier(self.host)

    @contextmanager
    def others(self) -> Iterator[None]:
        """Inside, this process has nothing to do but wait for the others: whoever is late, it is not."""
        self.watch.awaits(0, OTHERS)
        yield
        self.watch.awaits(0, "")

    @contextmanager
    def first(self) -> Iterator[None]:
        """The first process does what is inside before the others do."""
        if self.rank:
            self.wait()
        yield
        if not self.rank:
            self.wait()

    def combined(self, values: Tensor, largest: bool = False) -> Tensor:
        """The sum of all processes' ``values`` (on the host), or the largest of each."""
        if self.size == 1:
            return values
        with self.others():
            dist.all_reduce(values, dist.ReduceOp.MAX if largest else dist.ReduceOp.SUM, self.host)
        return values

    def gathered(self, value: Value) -> list[Value]:
        """Everybody's, by rank; plain values."""
        if self.size == 1:
            return [value]
        found: list = [None] * self.size
        with self.others():
            dist.all_gather_object(found, value, self.host)
        return found

    def parameters(self, replicate: int) -> DeviceMesh:
        """The mesh over which parameters are sharded, in ``replicate`` copies."""
        if self.size % replicate:
            raise AfnextError(
                f"replicate: {replicate} copies cannot be shared out among {self.size} processes"
            )
        shards = self.size // replicate
        if replicate == 1:
            return init_device_mesh(self.kind, (shards,), mesh_dim_names=("shard",))
        names = ("replicate", "shard")
        return init_device_mesh(self.kind, (replicate, shards), mesh_dim_names=names)

    def team(self, stage: StageConfig, text: TextConfig) -> Team:
        """Those who share sequences of a decoder ``text`` in a stage; one process has them whole, whatever
        the stage says.

        Raises:
            AfnextError: the processes, or the step's batches, cannot be shared out evenly, or there are more
                Ulysses ranks than heads.
        """
        if self.size == 1:
            return Team()
        groups, ring, ulysses = mesh_of(stage, text, self.size)
        together = ring * ulysses
        key = (ulysses, ring)
        if key not in self._teams:
            shape = (groups, ring, ulysses)
            mesh = init_device_mesh(self.kind, shape, mesh_dim_names=("data", "ring", "ulysses"))
            flat = init_device_mesh(
                self.kind, (groups, together), mesh_dim_names=("data", "sequence")
            )
            link: Link = Alone()
            if together > 1:
                link = GroupLink(mesh["ring", "ulysses"], self.timeout, self.watch.awaits)
            group = flat.get_group("sequence") if together > 1 else None
            self._teams[key] = Team(mesh.get_local_rank("data"), groups, link, group)
        return self._teams[key]


def mesh_of(stage: StageConfig, text: TextConfig, processes: int) -> tuple[int, int, int]:
    """How a stage groups processes: (groups with batches of their own, ring, Ulysses).

    Raises:
        RecipeError: the processes, or the step's batches, cannot be shared out evenly, or there are more
            Ulysses ranks than heads of the decoder ``text``.
    """
    if processes == 1:
        return 1, 1, 1
    ulysses, ring, heads = stage.parallel.ulysses, stage.parallel.ring, text.num_attention_heads
    if stage.parallel.ranks:
        shape = Shape(stage.batch_tokens, heads, text.num_key_value_heads, text.head_dim)
        ulysses, ring = choose(shape, stage.parallel.ranks)
    if ulysses > heads:
        raise RecipeError(f"{stage.name}: ulysses {ulysses} is more than the {heads} query heads")
    together = ulysses * ring
    if processes % together:
        raise RecipeError(
            f"{stage.name}: ulysses {ulysses} x ring {ring} takes {together} processes for each "
            f"sequence, which {processes} cannot be shared out to"
        )
    groups = processes // together
    if stage.accumulate % groups:
        raise RecipeError(
            f"{stage.name}: {stage.accumulate} batches a step (accumulate) cannot be shared out to "
            f"{groups} groups of processes"
        )
    return groups, ring, ulysses


def _first_line(error: BaseException) -> str:
    """What went wrong, without the advice that torch adds."""
    return (str(error).splitlines() or [""])[0].partition(". ")[0] or type(error).__name__


def summed(world: World, values: Mapping[str, float]) -> dict[str, float]:
    """The sum over all processes of numbers that all of them have, by name."""
    added = world.combined(torch.tensor(list(values.values()), dtype=torch.float64))
    return dict(zip(values, added.tolist(), strict=True))
