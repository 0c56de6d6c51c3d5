"""Digests of a model folder's tensors, in a file beside them: a flipped bit loads as any other number."""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from afnext.errors import CheckpointError

NAME = "digests.json"
ALGORITHM = "blake2b-128"
THREADS = 4


def digests(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Of the bytes of each tensor as a file holds them, hexadecimal."""

    def digest(name: str) -> str:
        return _digest(
            tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        )

    with ThreadPoolExecutor(THREADS) as pool:
        return dict(zip(tensors, pool.map(digest, tensors), strict=True))


def as_json(of: Mapping[str, str]) -> dict[str, Any]:
    """What stands in the file."""
    return {"algorithm": ALGORITHM, "tensors": dict(of)}


def verify(
    folder: str | Path, told: Callable[[str, float], None] = lambda what, share: None
) -> tuple[int, int]:
    """Read all weights of a folder, and compare them with the digests that were written with them.

    Args:
        folder: of the model; a file at a time is mapped.
        told: of the file that is read, and the share of all bytes before it.

    Returns:
        How many tensors there are, and their bytes.

    Raises:
        CheckpointError: naming the tensors that differ, are missing or not known; or there are no digests.
    """
    folder = Path(folder)
    wanted = _read(folder / NAME)
    files = sorted(folder.glob("*.safetensors"))
    sizes = [file.stat().st_size for file in files]
    found: dict[str, str] = {}
    total = 0
    for number, file in enumerate(files):
        told(f"reading {file.name}", sum(sizes[:number]) / max(1, sum(sizes)))
        for name, digest, size in _digests_of(file):
            found[name] = digest
            total += size
    wrong = {
        "differ from what was written": [
            n for n in found if found[n] != wanted.get(n) and n in wanted
        ],
        "are missing": [n for n in wanted if n not in found],
        f"are not in {NAME}": [n for n in found if n not in wanted],
    }
    said = [f"{', '.join(_few(names))} {what}" for what, names in wrong.items() if names]
    if said:
        raise CheckpointError(f"{folder}: {'; '.join(said)}")
    return len(found), total


def _few(names: list[str], most: int = 12) -> list[str]:
    return names[:most] + ([f"{len(names) - most} more"] if len(names) > most else [])


def _read(path: Path) -> dict[str, str]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        wanted = dict(content["tensors"])
        algorithm = content["algorithm"]
    except FileNotFoundError:
        raise CheckpointError(
            f"{path.parent}: has no {NAME}, so nobody knows what was written; afnext writes one with every "
            "folder that it trains or converts"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from None
    if algorithm != ALGORITHM:
        raise CheckpointError(f"{path}: has digests by {algorithm}, this afnext reads {ALGORITHM}")
    return wanted


def _digests_of(path: Path) -> Iterator[tuple[str, str, int]]:
    """Name, digest and bytes of each tensor of a file, whatever its dtype."""
    try:
        with path.open("rb") as file:
            first = 8 + int.from_bytes(file.read(8), "little")
            entries = json.loads(file.read(first - 8))
            entries.pop("__metadata__", None)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:

                def digest(entry: Mapping[str, Any]) -> str:
                    begin, end = (first + offset for offset in entry["data_offsets"])
                    if not first <= begin <= end <= len(mapped):
                        raise ValueError("it is cut short")
                    with memoryview(mapped) as all_of_it, all_of_it[begin:end] as part:
                        return _digest(part)

                with ThreadPoolExecutor(THREADS) as pool:
                    for (name, entry), made in zip(
                        entries.items(), pool.map(digest, entries.values()), strict=True
                    ):
                        begin, end = entry["data_offsets"]
                        yield name, made, end - begin
    except (
        OSError, ValueError, KeyError, TypeError, AttributeError, MemoryError, OverflowError
    ) as error:  # fmt: skip
        raise CheckpointError(f"{path}: cannot be read ({error})") from None


def _digest(data: Any) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
