"""Every CUDA source by nvcc, for GPUs that are not here: it compiles without a complaint, nothing spills to
local memory, and the instructions that a kernel is built around are in what the assembler got and made."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.cuda import nvcc
from tests.cuda.nvcc import ARCHS, CUDA, Compiled, Kernel
from tests.cuda.resources import is_sound, lines

pytestmark = [
    pytest.mark.sweep,
    pytest.mark.skipif(nvcc.nvcc() is None, reason="needs nvcc"),
]


@dataclass(frozen=True)
class Wanted:
    """Regular expressions that the code of a source must hold, of PTX and of machine code."""

    ptx: tuple[str, ...]
    sass: tuple[str, ...] = ()
    archs: tuple[str, ...] = ARCHS


TENSOR_CORES = Wanted(
    (r"ldmatrix\.sync", r"mma\.sync", r"cp\.async\.cg\.shared\.global.* 16"),
    (r"\bLDSM\b", r"\bHMMA\b", r"\bLDGSTS\b.*\.128\b"),
)
VECTORS = Wanted((r"ld\.global\S*\.v4",), (r"\bLDG\.E\.128",))
# A source without a line here is compiled and read for spills alone.
WANTED = {
    "all_to_all": VECTORS,
    "attention": TENSOR_CORES,
    "attention_backward": TENSOR_CORES,
    "attention_backward_sm90": Wanted(
        (
            r"wgmma\.mma_async",
            r"cp\.async\.bulk\.tensor",
            r"cp\.reduce\.async\.bulk",
            r"setmaxnreg",
        ),
        (r"\bHGMMA\b", r"\bUTMALDG\b", r"\bUBLKRED\b", r"\bUSETMAXREG\b"),
        ("90a",),
    ),
    "attention_sm90": Wanted(
        (r"wgmma\.mma_async", r"cp\.async\.bulk\.tensor", r"setmaxnreg"),
        (r"\bHGMMA\b", r"\bUTMALDG\b", r"\bUSETMAXREG\b"),
        ("90a",),
    ),
    "layer_norm": VECTORS,
    "log_mel": Wanted(
        (r"cp\.async\.cg\.shared\.global.* 16", r"st\.global\S*\.v4"),
        (r"\bLDGSTS\b.*\.128\b", r"\bSTG\.E\S*\.128"),
    ),
    "merge_attention": VECTORS,
    "pack": VECTORS,
    "packed_linear": Wanted((r"mma\.sync", r"\.v4"), (r"\bHMMA\b", r"\.128\b")),
    "paged_append": VECTORS,
    "paged_attention": VECTORS,  # the plain kernel and the merge; the others follow
    "paged_attention_bf16": TENSOR_CORES,
    "paged_attention_f16": TENSOR_CORES,
    "rms_norm": VECTORS,
    "rotate": VECTORS,
    "sample": VECTORS,
    "silu_mul": VECTORS,
}


@pytest.fixture(scope="session")
def compiled() -> dict[tuple[str, str], Compiled]:
    """All of them, by name and architecture: compiled once for all tests here."""
    return {(one.name, one.arch): one for one in nvcc.compile_all()}


def each() -> list[tuple[str, str]]:
    return [
        (source.relative_to(CUDA).with_suffix("").as_posix(), arch)
        for source in nvcc.sources()
        for arch in ARCHS
    ]


@pytest.mark.parametrize(("name", "arch"), each())
def test_compiles_without_a_complaint(
    name: str, arch: str, compiled: dict[tuple[str, str], Compiled]
) -> None:
    """Warnings of nvcc, and what ptxas says of serialised wgmma (C7510) or ignored setmaxnreg (C7508)."""
    one = compiled[name, arch]
    assert not one.failed, one.log[-3000:]
    assert one.complaints == []


@pytest.mark.parametrize(("name", "arch"), each())
def test_nothing_lies_in_local_memory(
    name: str, arch: str, compiled: dict[tuple[str, str], Compiled]
) -> None:
    one = compiled[name, arch]
    assert [k for k in one.kernels if k.stack or k.spills] == []
    assert len(one.kernels) == one.ptx.count(".entry "), "kernels that ptxas's report lacks"
    assert not re.search(r"\b(ld|st)\.local\b", one.ptx)
    assert not re.search(r"\b(LDL|STL)\b", one.sass() or "")


@pytest.mark.parametrize(
    ("name", "arch"), [at for at in each() if at[0] in WANTED and at[1] in WANTED[at[0]].archs]
)
def test_its_instructions_are_there(
    name: str, arch: str, compiled: dict[tuple[str, str], Compiled]
) -> None:
    one = compiled[name, arch]
    assert [wanted for wanted in WANTED[name].ptx if not re.search(wanted, one.ptx)] == []
    sass = one.sass()
    if sass is not None:
        assert [wanted for wanted in WANTED[name].sass if not re.search(wanted, sass)] == []


SPILLING = """
__global__ void __launch_bounds__(1024, 2) spilling(float* x) {
  float kept[64];
#pragma unroll
  for (int i = 0; i < 64; ++i) kept[i] = x[i * 1024 + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 64; ++i) x[i * 1024 + threadIdx.x] = kept[63 - i] * kept[i];
}
__global__ void indexed(float* x, int at) {
  float kept[100];
  for (int i = 0; i < 100; ++i) kept[i * at % 100] = x[i];
  int unused;
  x[0] = kept[at];
}
"""


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compiled:
    monkeypatch.setattr(nvcc, "CUDA", tmp_path)
    monkeypatch.setattr(nvcc, "BUILD", tmp_path / "build")
    (tmp_path / "planted.cu").write_text(SPILLING)
    return nvcc.compile_one(tmp_path / "planted.cu", "80")


@pytest.mark.parametrize(("stack", "spills"), [(0, 0), (400, 0), (0, 8)])
def test_the_table_fails_where_a_kernel_uses_local_memory(stack: int, spills: int) -> None:
    kernel = Kernel("x", threads=32, registers=8, stack=stack, spills=spills, shared=0)
    one = SimpleNamespace(failed=False, complaints=[], kernels=[kernel])
    assert is_sound(one) == (stack + spills == 0)  # type: ignore[arg-type]


def test_machine_code_is_read() -> None:
    """Or nothing that is asked of it could fail."""
    assert nvcc.disassembler() is not None


def test_planted_spills_stack_and_warnings_are_found(planted: Compiled) -> None:
    by_name: dict[str, Kernel] = {k.name: k for k in planted.kernels}
    assert by_name["spilling"].spills > 0
    assert by_name["spilling"].threads == 1024
    assert by_name["spilling"].blocks == 2
    assert by_name["indexed"].stack >= 400
    assert re.search(r"\b(ld|st)\.local\b", planted.ptx)
    assert any("unused" in line for line in planted.complaints)
    assert any("indexed" in line for line in lines([planted]))


@pytest.mark.parametrize(
    "line",
    [
        "ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized",
        "ptxas info    : (C7508) setmaxnreg ignored to maintain minimum register requirements",
        "ptxas warning : Local memory used for function 'x'",
    ],
)
def test_what_ptxas_only_mentions_is_a_complaint(line: str, tmp_path: Path) -> None:
    log = f"ptxas info    : 0 bytes gmem\n{line}\nptxas info    : Compile time = 1 ms\n"
    one = Compiled(CUDA / "x.cu", "90a", False, log, "", tmp_path)
    assert one.complaints == [line]


@pytest.mark.sweep
@pytest.mark.parametrize("arch", sorted(set(nvcc.ALL_ARCHS) - set(ARCHS)))
def test_newer_architectures(arch: str) -> None:
    for one in nvcc.compile_all([arch]):
        assert not one.failed, one.log[-3000:]
        assert one.complaints == []
        assert [k for k in one.kernels if k.stack or k.spills] == []
