"""Tensors mapped from a file are those that safetensors reads, and are read when they are used."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from afnext.ops.mapped_file import DTYPES, SMALL, MappedFile

SHAPES = st.lists(st.integers(0, 5), max_size=3) | st.just([3, SMALL // 2])


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(SHAPES, st.sampled_from(sorted(DTYPES)), st.text(max_size=4)),
        max_size=6,
        unique_by=lambda t: t[2],
    )
)
def test_it_reads_what_safetensors_reads(
    tmp_path_factory: pytest.TempPathFactory, made: list[tuple[list[int], str, str]]
) -> None:
    path = tmp_path_factory.mktemp("mapped") / "file.safetensors"
    tensors = {}
    for shape, dtype, name in made:
        if name != "__metadata__":
            tensors[name] = torch.randint(0, 100, shape).to(DTYPES[dtype])
    save_file(tensors, path, {"who": "me"})
    file = MappedFile(path)
    assert file.metadata == {"who": "me"}
    assert set(file.names) == set(tensors)
    found = file.tensors(tensors)
    path.unlink()  # a file that is gone is still there
    for name, tensor in tensors.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(found[name].float(), tensor.float())


def test_nothing_is_read_before_it_is_used(tmp_path: Path) -> None:
    """Neither when it is mapped, nor more than that: a change of the file is seen until then."""
    path = tmp_path / "file.safetensors"
    save_file({"large": torch.zeros(1 << 20), "small": torch.zeros(4)}, path)
    found = MappedFile(path).tensors(["large", "small"])
    data = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
    first = len(data) - 4 * ((1 << 20) + 4)
    with path.open("r+b") as file:
        for at in range(first, len(data), 1 << 18):
            file.seek(at)
            file.write(torch.ones(4).numpy().tobytes())
        file.flush()
        os.fsync(file.fileno())
    assert torch.equal(found["large"], load_file(path)["large"])
    assert found["large"].sum() > 0
    assert found["small"].sum() == 0
    found["large"].zero_()  # stays in this process
    assert load_file(path)["large"].sum() > 0


def test_what_is_no_such_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    with pytest.raises(OSError, match="file"):
        MappedFile(path)
    save_file({"a": torch.zeros(4), "b": torch.zeros(4, dtype=torch.int64)}, path)
    file = MappedFile(path)
    with pytest.raises(SafetensorError, match="c: missing"):
        file.tensors(["a", "c"])
    with pytest.raises(SafetensorError, match="b: I64"):
        file.tensors(["b"])
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(SafetensorError):
        MappedFile(path)


def test_tensors_are_on_the_cpu_whatever_the_default_device(tmp_path: Path) -> None:
    tensors = {"none": torch.zeros(0, 3), "small": torch.ones(4), "large": torch.ones(SMALL)}
    save_file(tensors, tmp_path / "file.safetensors")
    with torch.device("meta"):
        found = MappedFile(tmp_path / "file.safetensors").tensors(tensors)
    assert {name: t.device.type for name, t in found.items()} == dict.fromkeys(tensors, "cpu")
