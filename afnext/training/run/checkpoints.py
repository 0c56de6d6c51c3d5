"""Checkpoints of a run: a folder each, by torch's Distributed Checkpoint. Every process writes what it has
while training goes on, and a run goes on from one with any number of processes.

``checkpoints/01-0000200`` is of before step 200 of the second stage (counted from 0). It holds tensors,
named ``weights/..``, ``optimizer/..`` and ``random/RANK``, and ``progress.json``. A folder gets its name when
it is whole; until then it ends in ``.partial``. Nothing in it is run when it is read: of the pickle that
lists the tensors only the kinds of things that belong there are built.
"""

from __future__ import annotations

import json
import pickle
import shutil
import warnings
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, wait
from enum import EnumType
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.optim import Optimizer

from afnext.errors import AfnextError, CheckpointError
from afnext.training.distributed.world import World
from afnext.training.run.state import Progress

# torch warns where there is one process and it is told so.
warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)

CHECKPOINTS = "checkpoints"
"""Of a run's folder."""
PARTIAL = ".partial"
PROGRESS = "progress.json"
CUDA = "/cuda"
# Of what the list of tensors is made.
_KNOWN = {
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta",
        "TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch": {"Size", "float64", "float32", "float16", "bfloat16", "int64", "int32", "uint8", "bool"},
    "torch.serialization": {"_get_layout"},
    "pathlib": {"PosixPath", "WindowsPath", "PurePosixPath", "Path"},
}  # fmt: skip


class _Pending(NamedTuple):
    """What is being written: by this process, by all, and until it has its name (on the first)."""

    wrote: Event
    writing: Future
    landed: Future
    path: Path


class Checkpoints:
    """The checkpoints of a run.

    Args:
        folder: of them.
        world: the processes of the run; all of them call each method.
        keep: how many of the newest stay.
    """

    def __init__(self, folder: Path, world: World, keep: int = 2) -> None:
        self.folder, self.world, self.keep = folder, world, keep
        self._pending: _Pending | None = None

    @property
    def newest(self) -> Path | None:
        """The folder of the last one that is whole."""
        return newest(self.folder)

    def save(self, trained: nn.Module, optimizers: Sequence[Optimizer], progress: Progress) -> None:
        """Copy the state and begin to write it; the one before is waited for.

        Raises:
            AfnextError: the one before could not be written; those before that are as they were.
        """
        self.finish()
        path = self.folder / f"{progress.stage:02}-{progress.step:07}"
        partial = path.with_name(path.name + PARTIAL)
        values = progress.to_dict()
        if self.world.rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
            self._make_room(partial)
        self.world.wait()
        tensors = _weights(trained) | _moments(trained, optimizers)
        tensors |= self._random()
        writer = _Writer(partial)
        writing = dcp.async_save(
            tensors, storage_writer=writer, no_dist=self.world.size == 1,
            process_group=self.world.writing,
        )  # fmt: skip
        assert isinstance(writing, Future)
        writing.add_done_callback(lambda done: writer.wrote.set())  # where it failed before
        landed = writing
        if self.world.rank == 0:
            landed = Future()
            writing.add_done_callback(lambda done: self._land(done, partial, path, values, landed))
        self._pending = _Pending(writer.wrote, writing, landed, path)

    def finish(self) -> None:
        """Wait for what is being written.

        Raises:
            AfnextError: it could not be; the one before is as it was.
        """
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        path, why = pending.path, ""
        try:
            pending.wrote.wait()
            with self.world.others():
                wait([pending.writing])
            pending.landed.result()
        except (Exception, dcp.CheckpointException) as error:
            why = _why(error)
        failed = [w for w in self.world.gathered(why) if w]
        if failed:
            if self.world.rank == 0:
                shutil.rmtree(path.with_name(path.name + PARTIAL), ignore_errors=True)
            raise AfnextError(f"cannot write {path}: {failed[0]}")

    def close(self) -> None:
        """Wait for what this process is writing, whatever becomes of it: for a run that ends with an error,
        of which the others may not know.
        """
        if self._pending is not None:
            wait([self._pending.landed])

    def restore(self, trained: nn.Module) -> Progress | None:
        """Read the weights and the random state of the newest; None where there is none.

        Raises:
            CheckpointError: it is broken, or of another network.
        """
        path = self.newest
        if path is None:
            return None
        reader, stored = _opened(path)
        wanted = _weights(trained)
        there = {name for name in stored if name.startswith("weights/")}
        if missing := sorted(wanted.keys() ^ there):
            raise CheckpointError(
                f"cannot resume from {path}: it is of another network ({missing[0]})"
            )
        for name, value in wanted.items():
            if tuple(stored[name].size) != tuple(value.shape):
                raise CheckpointError(
                    f"cannot resume from {path}: it is of another network ({name} is "
                    f"{list(stored[name].size)} there, {list(value.shape)} here)"
                )
        random = {name: torch.empty_like(state) for name, state in self._random().items()}
        random = {name: state for name, state in random.items() if name in stored}
        self._read(path, reader, wanted | random)
        for name, state in random.items():
            if name.endswith(CUDA):
                torch.cuda.set_rng_state(state)
            else:
                torch.set_rng_state(state)
        return read_progress(path)

    def restore_optimizers(self, trained: nn.Module, optimizers: Sequence[Optimizer]) -> None:
        """Read what the newest has of optimizers over the same parameters.

        Raises:
            CheckpointError: it is broken.
        """
        path = self.newest
        if path is None:
            return
        reader, stored = _opened(path)
        wanted: dict[str, Tensor] = {}
        places: list[tuple[Optimizer, nn.Parameter, str, str]] = []
        for name, parameter, optimizer in _optimized(trained, optimizers):
            start = f"optimizer/{name}/"
            for full in (full for full in stored if full.startswith(start)):
                kind = stored[full]
                whole = tuple(kind.size) == tuple(parameter.shape) and parameter.ndim > 0
                dtype = kind.properties.dtype
                wanted[full] = (
                    torch.zeros_like(parameter, dtype=dtype)
                    if whole
                    else torch.empty(kind.size, dtype=dtype, device=parameter.device)
                )
                places.append((optimizer, parameter, full, full.removeprefix(start)))
        self._read(path, reader, wanted)
        for optimizer, parameter, full, key in places:
            optimizer.state[parameter][key] = wanted[full]

    def _random(self) -> dict[str, Tensor]:
        """The state that dropout draws from, of this process."""
        name = f"random/{self.world.rank}"
        host = {name: torch.get_rng_state()}
        return host | (
            {name + CUDA: torch.cuda.get_rng_state()} if self.world.kind == "cuda" else {}
        )

    def _read(self, path: Path, reader: dcp.StorageReader, wanted: dict[str, Tensor]) -> None:
        if not wanted:
            return
        try:
            dcp.load(
                dict(wanted), storage_reader=reader, no_dist=self.world.size == 1,
                process_group=self.world.writing,
            )  # fmt: skip
        except (Exception, dcp.CheckpointException) as error:
            raise CheckpointError(f"cannot resume from {path}: {_why(error)}") from None

    def _land(
        self, done: Future, partial: Path, path: Path, values: Mapping[str, Any], written: Future
    ) -> None:
        """What all have written gets its name; older ones go."""
        try:
            done.result()
            (partial / PROGRESS).write_text(json.dumps(values))
            shutil.rmtree(path, ignore_errors=True)
            partial.replace(path)
            for old in _whole(self.folder)[: -self.keep]:
                shutil.rmtree(old, ignore_errors=True)
        except BaseException as error:
            written.set_exception(error)
        else:
            written.set_result(None)

    def _make_room(self, partial: Path) -> None:
        try:
            partial.mkdir(parents=True)
        except OSError as error:
            raise AfnextError(f"cannot write {partial}: {error.strerror}") from None


def newest(folder: Path) -> Path | None:
    """Of the checkpoints in a folder the last one that is whole."""
    return next(reversed(_whole(folder)), None)


def read_progress(path: Path) -> Progress:
    """Where the run stood when a checkpoint was written.

    Raises:
        CheckpointError: it is broken, or of another format.
    """
    try:
        return Progress.from_dict(json.loads((path / PROGRESS).read_text()))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, AfnextError) as error:
        raise CheckpointError(f"cannot resume from {path}: {PROGRESS}: {error}") from None


def _whole(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("*-*") if not p.name.endswith(PARTIAL))


def read(path: Path, start: str = "") -> dict[str, Tensor]:
    """The tensors of a checkpoint whose names begin so, whole, by name.

    Raises:
        CheckpointError: it is broken.
    """
    reader, stored = _opened(path)
    found = {
        name: torch.empty(kind.size, dtype=kind.properties.dtype)
        for name, kind in stored.items()
        if name.startswith(start)
    }
    try:
        dcp.load(dict(found), storage_reader=reader, no_dist=True)
    except (Exception, dcp.CheckpointException) as error:
        raise CheckpointError(f"cannot read {path}: {_why(error)}") from None
    return found


def _weights(trained: nn.Module) -> dict[str, Tensor]:
    return {f"weights/{name}": value.detach() for name, value in trained.state_dict().items()}


def _optimized(
    trained: nn.Module, optimizers: Sequence[Optimizer]
) -> Iterable[tuple[str, nn.Parameter, Optimizer]]:
    names = {id(parameter): name for name, parameter in trained.named_parameters()}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                yield names[id(parameter)], parameter, optimizer


def _moments(trained: nn.Module, optimizers: Sequence[Optimizer]) -> dict[str, Tensor]:
    """Rates are not kept: the recipe and the step give them."""
    return {
        f"optimizer/{name}/{key}": value
        for name, parameter, optimizer in _optimized(trained, optimizers)
        for key, value in optimizer.state.get(parameter, {}).items()
    }


class _Writer(dcp.FileSystemWriter):
    """``wrote``: what this process has is written."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.wrote = Event()

    def write_data(self, plan: dcp.SavePlan, planner: dcp.SavePlanner) -> Any:
        written = super().write_data(plan, planner)
        self.wrote.set()
        return written


class _Reader(dcp.FileSystemReader):
    """Reads the list of tensors without running what a pickle may ask for."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with (Path(self.path) / ".metadata").open("rb") as file:
            found = _Unpickler(file).load()
        if not isinstance(found, Metadata):
            raise pickle.UnpicklingError("the list of tensors is none")
        found.storage_meta = found.storage_meta or StorageMeta()
        found.storage_meta.load_id = self.load_id
        return found


def _member(kind: Any, name: str) -> Any:
    """Of an enumeration that belongs in a list of tensors, and of nothing else."""
    if not (isinstance(kind, EnumType) and kind.__name__ in _KNOWN.get(kind.__module__, ())):
        raise pickle.UnpicklingError(f"getattr of {kind!r} does not belong in a list of tensors")
    return kind[name]


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("builtins", "getattr"):  # how Python before 3.11.4 has enumerations
            return _member
        if name not in _KNOWN.get(module, ()):
            raise pickle.UnpicklingError(f"{module}.{name} does not belong in a list of tensors")
        return super().find_class(module, name)


def _opened(path: Path) -> tuple[_Reader, dict[str, TensorStorageMetadata]]:
    try:
        reader = _Reader(path)
        listed = reader.read_metadata().state_dict_metadata
        tensors = {n: kind for n, kind in listed.items() if isinstance(kind, TensorStorageMetadata)}
        if other := sorted(listed.keys() - tensors.keys()):
            raise ValueError(f"{other[0]} is no tensor")
    except Exception as error:
        raise CheckpointError(f"cannot resume from {path}: {error}") from None
    return reader, tensors


def _why(error: BaseException) -> str:
    """What went wrong; torch wraps what each process ran into."""
    if isinstance(error, dcp.CheckpointException):
        (rank, (first, _)), *_ = error.failures.items()
        return f"rank {rank}: {_why(first)}"
    return (str(error).strip().splitlines() or [""])[0] or type(error).__name__
