"""Tensors of a safetensors file where they lie: nothing is read that nobody asks for.

safetensors' own ``get_tensor`` touches the first byte of each tensor, for which the system reads megabytes
around it: all of a large file where tensors are many.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

DTYPES = {
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F8_E4M3": torch.float8_e4m3fn,
    "I8": torch.int8,
    "U8": torch.uint8,
}
SMALL = 1 << 16
"""Bytes up to which a tensor is read at once: that takes no longer than to look for it."""


class MappedFile:
    """A safetensors file; an open file is not held, and tensors outlive this.

    Attributes:
        metadata: what the file says about itself.
        names: of its tensors.

    Raises:
        SafetensorError: it is none, or damaged.
        OSError: it cannot be read.
    """

    def __init__(self, path: str | Path) -> None:
        from safetensors import safe_open  # here, as ops are used where torch alone is installed

        self._path = Path(path)
        # Checks the header, and that it fits the file's length.
        with safe_open(path, framework="pt") as checked:
            self.metadata: dict[str, str] = checked.metadata() or {}
        with self._path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            self._header = json.loads(file.read(size))
            # A private mapping, writable for torch's sake: what is written stays in this process.
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self._header.pop("__metadata__", None)
        self._first = 8 + size
        self.names = list(self._header)

    def tensors(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The named tensors, mapped; small ones are copies.

        Raises:
            SafetensorError: there is no such tensor, or it has a dtype that afnext has no use for.
        """
        with self._path.open("rb") as file:
            return {name: self._tensor(name, file) for name in names}

    def _tensor(self, name: str, file: BinaryIO) -> Tensor:
        entry = self._header.get(name)
        if entry is None or entry["dtype"] not in DTYPES:
            from safetensors import SafetensorError

            raise SafetensorError(f"{name}: " + ("missing" if entry is None else entry["dtype"]))
        dtype, shape = DTYPES[entry["dtype"]], entry["shape"]
        begin, end = entry["data_offsets"]
        count = math.prod(shape)
        if count == 0:
            return torch.empty(shape, dtype=dtype, device="cpu")
        if end - begin > SMALL:
            at = self._first + begin
            return torch.frombuffer(self._map, dtype=dtype, count=count, offset=at).view(shape)
        file.seek(self._first + begin)
        data = bytearray(file.read(end - begin))
        return torch.frombuffer(data, dtype=dtype, count=count).view(shape)
