"""Model folders in transformers' layout: reading, checking and writing safetensors.

Everything is checked against the headers before a weight is read. Files are memory-mapped, and a large weight
whose dtype and device already fit is used where it lies in the mapping.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from afnext.errors import CheckpointError
from afnext.ops.mapped_file import MappedFile
from afnext.ops.quantize import QuantizedWeight

from . import digests, quantized

if TYPE_CHECKING:
    from .audio_language_model import AudioLanguageModel

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5_000_000_000
HEADER_BYTES_MAX = 1 << 25
JSON_BYTES_MAX = 1 << 26
EMBEDDING = "language_model.model.embed_tokens.weight"
HEAD = "language_model.lm_head.weight"
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def canonical_name(stored: str) -> str:
    """The published name of a tensor; transformers 5 names its modules otherwise in memory."""
    if stored == "lm_head.weight":
        return HEAD
    if not stored.startswith("model."):
        return stored
    name = stored.removeprefix("model.")
    inner = name.removeprefix("language_model.")
    return name if inner == name else f"language_model.model.{inner}"


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file, or None where there is no such file."""
    if not path.is_file():
        return None
    if path.stat().st_size > JSON_BYTES_MAX:
        raise CheckpointError(f"{path}: larger than {JSON_BYTES_MAX} bytes")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not JSON ({error})") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: must hold a JSON object")
    return data


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies and what its header says."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]


class Weights:
    """The tensors of a model folder, by published name; only headers are read until loaded."""

    def __init__(self, folder: Path, tensors: dict[str, StoredTensor]) -> None:
        self.folder, self.tensors = folder, tensors

    @classmethod
    def open(cls, folder: str | Path) -> Weights:
        """Read the headers of a folder's weights.

        Raises:
            CheckpointError: when files are missing, truncated or corrupt.
        """
        folder = Path(folder)
        tensors: dict[str, StoredTensor] = {}
        for file, wanted in _files(folder).items():
            found = _header(file)
            for stored in sorted(wanted - found.keys()):
                raise CheckpointError(f"{file}: the index promises {stored}, which is not in it")
            for stored, tensor in found.items():
                name = canonical_name(stored)
                if name in tensors:
                    raise CheckpointError(f"{folder}: {name} is stored twice")
                tensors[name] = tensor
        return cls(folder, tensors)

    def load_into(
        self,
        model: AudioLanguageModel,
        *,
        dtype: torch.dtype | None,
        device: torch.device,
        integers_alone: bool | str = False,
    ) -> None:
        """Give ``model`` (built on the meta device) these weights.

        Those that are stored as integers are also turned into numbers of ``dtype``; with
        ``integers_alone``, or where their names begin with it, they stay on the meta device, and only carry
        their integers.

        Raises:
            CheckpointError: naming the tensors that are missing, mis-shaped or of an odd dtype.
        """
        if dtype not in (None, torch.float32, torch.bfloat16):
            raise ValueError(f"dtype must be torch.float32 or torch.bfloat16, got {dtype}")
        expected = {name: tuple(p.shape) for name, p in model.state_dict().items()}
        tied = model.config.text.tie_word_embeddings and HEAD not in self.tensors
        if tied:
            del expected[HEAD]
        integers = self._quantized({HEAD, *expected})
        for name in integers.keys() & expected.keys():
            _require_shape(self.folder, name, integers[name].shape, expected[name])
        self._check({n: s for n, s in expected.items() if n not in integers}, integers)
        if dtype is None:
            dtype = DTYPES[self.tensors[EMBEDDING].dtype]
            dtype = torch.float32 if dtype == torch.float16 else dtype
        loaded = self._read([n for n in expected if n not in integers], dtype, device)
        for name in integers.keys() & expected.keys():
            shape = expected[name]
            if (
                name.startswith(integers_alone)
                if isinstance(integers_alone, str)
                else integers_alone
            ):
                loaded[name] = torch.empty(shape, dtype=dtype, device="meta")
            else:
                loaded[name] = integers[name].dequantize(dtype).to(device)
        if model.config.text.tie_word_embeddings and not tied:
            tied = torch.equal(loaded[HEAD], loaded[EMBEDDING])
            if not tied:
                warnings.warn(
                    f"{self.folder}: the config ties lm_head to the embeddings, but the file's differ; "
                    "both are kept, as transformers does",
                    stacklevel=3,
                )
        if tied:
            loaded[HEAD] = loaded[EMBEDDING]
        model.load_state_dict(loaded, assign=True)
        if tied:
            model.language_model.lm_head.weight = model.language_model.model.embed_tokens.weight
        for module in model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.to(device))
        for name, weight in integers.items():
            quantized.keep(model.get_parameter(name), weight)

    def part(self, prefix: str, dtype: torch.dtype) -> dict[str, Tensor]:
        """The tensors whose names begin with ``prefix``, by the rest of their names; no others are read.

        Raises:
            CheckpointError: they cannot be read.
        """
        names = [name for name in self.tensors if name.startswith(prefix)]
        integers = self._quantized(name.removesuffix(".quantization") for name in names)
        pieces = {f"{name}.{part}" for name in integers for part in quantized.PARTS}
        found = self._read([n for n in names if n not in pieces], dtype, torch.device("cpu"))
        found |= {name: weight.dequantize(dtype) for name, weight in integers.items()}
        return {name.removeprefix(prefix): tensor for name, tensor in found.items()}

    def formats(self) -> list[str]:
        """Formats of the weights that are stored as integers; no others are read.

        Raises:
            CheckpointError: one cannot be read.
        """
        tags = [name for name in self.tensors if name.endswith(".quantization")]
        try:
            found = {
                str(json.loads(bytes(tag.tolist()))["format"])
                for tag in self._read(tags, None, torch.device("cpu")).values()
            }
        except (ValueError, TypeError, KeyError) as error:
            raise CheckpointError(
                f"{self.folder}: a quantization is not readable ({error})"
            ) from None
        return sorted(found)

    def _quantized(self, names: Iterable[str]) -> dict[str, QuantizedWeight]:
        """Those of the named weights that are stored as integers."""
        names = [name for name in names if f"{name}.quantization" in self.tensors]
        pieces = (f"{name}.{part}" for name in names for part in quantized.PARTS)
        tensors = self._read([p for p in pieces if p in self.tensors], None, torch.device("cpu"))
        try:
            return {name: QuantizedWeight.from_tensors(tensors, name) for name in names}
        except ValueError as error:
            raise CheckpointError(f"{self.folder}: {error}") from None

    def _check(self, expected: Mapping[str, tuple[int, ...]], integers: Iterable[str]) -> None:
        missing = [name for name in expected if name not in self.tensors]
        if missing:
            raise CheckpointError(f"{self.folder}: lacks {_listed(missing)}")
        for name, shape in expected.items():
            stored = self.tensors[name]
            _require_shape(self.folder, name, stored.shape, shape)
            if stored.dtype not in DTYPES:
                raise CheckpointError(
                    f"{self.folder}: {name} has dtype {stored.dtype}; need one of {', '.join(DTYPES)}"
                )
        used = {*expected, *(f"{name}.{part}" for name in integers for part in quantized.PARTS)}
        extra = [t.name for name, t in self.tensors.items() if name not in used]
        if extra:
            warnings.warn(
                f"{self.folder}: ignoring tensors that the model lacks: {_listed(extra)}",
                stacklevel=4,
            )

    def _read(
        self, names: Iterable[str], dtype: torch.dtype | None, device: torch.device
    ) -> dict[str, Tensor]:
        """The named tensors, file by file, in ``dtype`` or as they are."""
        by_file: dict[Path, list[str]] = {}
        for name in names:
            by_file.setdefault(self.tensors[name].file, []).append(name)
        out = {}
        for file, members in by_file.items():
            try:
                stored = MappedFile(file).tensors(self.tensors[name].name for name in members)
                for name in members:
                    tensor = stored[self.tensors[name].name]
                    out[name] = tensor.to(device=device, dtype=dtype)
            except (SafetensorError, OSError, RuntimeError) as error:
                raise CheckpointError(f"{file}: cannot be read ({error})") from None
        return out


def _files(folder: Path) -> dict[Path, set[str]]:
    """The weight files of a folder and what the index promises of each."""
    if (folder / WEIGHTS).is_file():
        return {folder / WEIGHTS: set()}
    index = read_json(folder / INDEX)
    if index is None:
        pickled = any(p.suffix in (".bin", ".pt", ".pth") for p in folder.iterdir())
        hint = " (pickled weights are never loaded; convert them to safetensors)" if pickled else ""
        raise CheckpointError(f"{folder}: no {WEIGHTS} and no {INDEX}{hint}")
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{folder / INDEX}: weight_map must be an object of names and files")
    files: dict[Path, set[str]] = {}
    for name, file in weight_map.items():
        inside = isinstance(file, str) and Path(file).name == file and file.endswith(".safetensors")
        if not inside:
            raise CheckpointError(f"{folder / INDEX}: {file!r} is not a safetensors file name")
        files.setdefault(folder / file, set()).add(name)
    return files


def _header(file: Path) -> dict[str, StoredTensor]:
    """What a safetensors file holds; its length is checked against its header."""
    try:
        with file.open("rb") as raw:
            size = int.from_bytes(raw.read(8), "little")
        if not 2 <= size <= min(HEADER_BYTES_MAX, file.stat().st_size - 8):
            raise CheckpointError(
                f"{file}: not a safetensors file, or truncated (header of {size} bytes)"
            )
        with safe_open(file, framework="pt", device="cpu") as reader:
            found = {}
            for name in reader.keys():  # noqa: SIM118 (not a mapping)
                piece = reader.get_slice(name)
                found[name] = StoredTensor(file, name, piece.get_dtype(), tuple(piece.get_shape()))
            return found
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: cannot be read ({error})") from None


def _require_shape(
    folder: Path, name: str, found: tuple[int, ...], wanted: tuple[int, ...]
) -> None:
    if found != wanted:
        raise CheckpointError(
            f"{folder}: {name} is {list(found)}, config.json asks for {list(wanted)}"
        )


def _listed(names: list[str], most: int = 12) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def save(model: AudioLanguageModel, folder: str | Path, max_shard_bytes: int) -> None:
    """Write ``model`` to ``folder``: first beside it, then moved into place.

    A new folder appears whole. In one that exists each file is replaced whole, and what the new files
    supersede is removed last.
    """
    folder = Path(folder).absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        _write(model, temporary, max_shard_bytes)
        temporary.chmod(0o755)
        if not folder.exists():
            temporary.rename(folder)
            return
        written = sorted(p.name for p in temporary.iterdir())
        for name in written:
            (temporary / name).replace(folder / name)
        for old in (folder / WEIGHTS, folder / INDEX, *folder.glob("model-*-of-*.safetensors")):
            if old.name not in written:
                old.unlink(missing_ok=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write(model: AudioLanguageModel, folder: Path, max_shard_bytes: int) -> None:
    tensors = {name: t.detach().contiguous() for name, t in model.state_dict().items()}
    # transformers never ties lm_head here, so it is always stored, on its own.
    tensors[HEAD] = tensors[HEAD].clone()
    for name, weight in quantized.kept_in(model).items():
        del tensors[name]
        tensors.update(weight.tensors(name))
    shards = _shards(tensors, max_shard_bytes)
    weight_map = {}
    for i, names in enumerate(shards, start=1):
        many = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        file = folder / (WEIGHTS if len(shards) == 1 else many)
        save_file({n: tensors[n].cpu() for n in names}, file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(names, file.name))
    if len(shards) > 1:
        total = sum(t.nbytes for t in tensors.values())
        _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    _write_json(folder / digests.NAME, digests.as_json(digests.digests(tensors)))
    dtype = str(tensors[EMBEDDING].dtype).removeprefix("torch.")
    _write_json(folder / "config.json", model.config.with_dtype(dtype).to_dict())
    if model.generation_config is not None:
        _write_json(folder / "generation_config.json", model.generation_config)
    mode = (folder / "config.json").stat().st_mode
    for file in folder.iterdir():
        file.chmod(mode)  # safetensors' files are their owner's alone, whatever the umask says
        with file.open("rb") as written:
            os.fsync(written.fileno())


def _shards(tensors: Mapping[str, Tensor], max_bytes: int) -> list[list[str]]:
    """Names in order, cut so that each run stays within ``max_bytes`` (a single tensor may exceed)."""
    shards: list[list[str]] = [[]]
    total = 0
    for name, tensor in tensors.items():
        if shards[-1] and total + tensor.nbytes > max_bytes:
            shards.append([])
            total = 0
        shards[-1].append(name)
        total += tensor.nbytes
    return shards


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
