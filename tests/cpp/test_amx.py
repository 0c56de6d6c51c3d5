"""The real AMX instructions, on a machine without them: the library's compiled code in Bochs, an emulator
that others wrote, whose Sapphire Rapids has tiles.

A ROM of 4 MiB holds a reset vector, a program around libafnext.a and the calls that it makes; results come
out of the printer's port. Needs Bochs 3.0, built with AMX as Debian's is."""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from afnext import ops
from afnext.ops import PackedWeight, runtime
from afnext.ops._compiled import compiled
from tests.ops.attention_oracle import Case, assert_gold, make_case, oracle

ROOT = Path(__file__).parents[2]
SOURCES = Path(__file__).parent / "bochs"
LIBRARIES = sorted(ROOT.glob("build/*/libafnext.a"), key=lambda path: path.stat().st_mtime)

PROGRAM, CALLS, ROM, RESET = 0x200000, 0x500000, 4 << 20, 64 << 10  # addresses; sizes
DTYPES = {torch.float32: 0, torch.bfloat16: 1}  # as afnext::DType counts
FORMATS = ["float32", "bfloat16", "int8", "int4"]  # and afnext::WeightFormat


def bochs_with_tiles() -> str | None:
    """The emulator; Debian's `bochs` is a script around it."""
    for path in map(shutil.which, ("bochs-bin", "bochs")):
        if path is not None and b"tdpbf16ps" in Path(path).read_bytes():
            return path
    return None


BOCHS = bochs_with_tiles()
pytestmark = pytest.mark.skipif(not LIBRARIES, reason="needs libafnext.a of this checkout's build")
needs_bochs = pytest.mark.skipif(BOCHS is None, reason="needs Bochs with AMX, as Debian's 3.0")


@dataclass
class Call:
    """A call of the program: ``Call`` of guest.cpp, its inputs, and how its bytes become tensors."""

    op: int
    dtype: torch.dtype = torch.float32
    inputs: tuple[Tensor | None, ...] = ()
    size: tuple[int, ...] = (0,) * 4
    option: tuple[int, ...] = (0,) * 4
    results: tuple[tuple[tuple[int, ...], torch.dtype], ...] = ()

    def out_bytes(self) -> int:
        shape, dtype = self.results[0] if self.results else ((0,), torch.uint8)
        return int(np.prod(shape)) * dtype.itemsize


def linear(x: Tensor, packed: PackedWeight, bias: Tensor | None = None) -> Call:
    name, _, group = packed.format.removesuffix("-zp").partition("-g")
    return Call(
        2, x.dtype, (x, packed.data, bias), (len(x), packed.n, packed.k, packed.gate_up),
        (FORMATS.index(name), int(group or 0), packed.format.endswith("-zp"),
         8 if packed.activations == "int8" else 16),
        (((len(x), packed.columns), x.dtype),),
    )  # fmt: skip


def attention(case: Case, slots: int = 0) -> Call:
    """Of packed tokens, or of pages of so many slots, which the program reads from the last to the first."""
    (tokens, heads, dim), (keys, kv_heads, _) = case.q.shape, case.k.shape
    inputs = [case.q, case.k, case.v]
    if slots > 0:
        for i in (1, 2):
            pages = F.pad(inputs[i], (0, 0, 0, 0, 0, -keys % slots)).unflatten(0, (-1, slots))
            inputs[i] = pages.transpose(1, 2).flip(0)
    return Call(4 if slots > 0 else 3, case.q.dtype, tuple(inputs), (tokens, heads, kv_heads, dim),
                (case.causal, slots, keys, 0),
                ((tuple(case.q.shape), case.q.dtype), ((heads, tokens), torch.float32)))  # fmt: skip


def image(calls: list[Call]) -> bytes:
    """The calls, an end, and what they point to; room for their first results."""
    header, size = struct.Struct("<14q"), 0
    size = end = -(-header.size * (len(calls) + 1) // 64) * 64
    headers, data = b"", b""
    for call in calls:
        tensors = [t.contiguous().view(torch.uint8).numpy().tobytes() if t is not None else b""
                   for t in call.inputs]  # fmt: skip
        offsets = []
        for content in [*tensors, bytes(call.out_bytes())]:
            offsets.append(end if content else 0)
            data += content + bytes(-len(content) % 64)
            end = size + len(data)
        offsets = (offsets + [0] * 4)[:4]
        headers += header.pack(call.op, DTYPES[call.dtype], *offsets, *call.size, *call.option)
    return headers.ljust(size, b"\0") + data


Runner = Callable[[list[Call]], list[tuple[Tensor, ...]]]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    """Runs calls in the emulator, checks that each left the tiles as it found them, gives the results."""
    folder = tmp_path_factory.mktemp("bochs")

    def tool(*command: object) -> None:
        done = subprocess.run(list(map(str, command)), cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]

    compiler = ["g++", "-std=c++20", "-fno-stack-protector", f"-I{ROOT / 'csrc/include'}",
                f"-I{ROOT / 'csrc'}"]  # fmt: skip
    tool(*compiler, "-O1", "-ffreestanding", "-fno-exceptions", "-fno-pie", "-fno-builtin",
         "-mno-red-zone", "-Wall", "-Wextra", "-c", SOURCES / "guest.cpp", "-o", "guest.o")  # fmt: skip
    # Bochs 3.0 and 3.1 read the second source of vcvtne2ps2bf16 past its end. It is no instruction of
    # AMX: attention is compiled without, and else as the library's.
    tool(*compiler, "-O3", "-march=sapphirerapids", "-mno-avx512bf16", "-mno-avx512fp16",
         "-mprefer-vector-width=512", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math",
         "-Wno-psabi", "-DAFNEXT_ISA=amx", "-DAFNEXT_LANES=16", "-c",
         ROOT / "csrc/cpu/attention_tiles.cpp", "-o", "attention_tiles.o")  # fmt: skip
    tool("ld", "-T", SOURCES / "program.ld", "--unresolved-symbols=ignore-all",
         "guest.o", "attention_tiles.o", LIBRARIES[-1], "-o", "guest.elf")  # fmt: skip
    tool("objcopy", "-O", "binary", "guest.elf", "guest.bin")
    tool("as", "--64", SOURCES / "reset.S", "-o", "reset.o")
    tool("ld", "-T", SOURCES / "rom.ld", "reset.o", "-o", "reset.bin")
    program, reset = ((folder / name).read_bytes() for name in ("guest.bin", "reset.bin"))
    assert len(program) <= CALLS - PROGRAM

    def emulate(calls: list[Call]) -> list[tuple[Tensor, ...]]:
        rom = program.ljust(CALLS - PROGRAM, b"\0") + image(calls)
        assert len(rom) <= ROM - RESET
        (folder / "rom.bin").write_bytes(rom.ljust(ROM - RESET, b"\0") + reset)
        (folder / "vga.bin").write_bytes(bytes(512))
        (folder / "printed").unlink(missing_ok=True)
        (folder / "bochsrc").write_text((SOURCES / "bochsrc").read_text())
        # Its display needs a terminal.
        subprocess.run(
            ["script", "--quiet", "--command", f"{BOCHS} -q -f bochsrc", "/dev/null"],
            cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, timeout=300,
            env={**os.environ, "TERM": "xterm"},
        )  # fmt: skip
        assert (folder / "printed").exists(), (folder / "log").read_text()[-4000:]
        return parse(calls, (folder / "printed").read_bytes())

    return emulate


def parse(calls: list[Call], printed: bytes) -> list[tuple[Tensor, ...]]:
    if printed[:8] != struct.pack("<q", 1):
        pytest.skip("this Bochs divides wrongly (3.1 does, 3.0 does not)")
    results, at = [], 8
    for call in calls:
        tensors = []
        for shape, dtype in call.results:
            count = int(np.prod(shape))
            tensors.append(torch.frombuffer(bytearray(printed), dtype=dtype, count=count, offset=at)
                           .reshape(shape))  # fmt: skip
            at += count * dtype.itemsize
        assert printed[at : at + 8] == bytes(8), "the tiles are still configured"
        at += 8
        results.append(tuple(tensors))
    assert at == len(printed)
    return results


# Of each product of tiles the tile of columns, that of rows and that of sums.
TWO_BY_TWO = {"640", "741", "652", "753"}
# Rows x columns of sums: 1 x 1, 4 x 1, 1 x 2, 2 x 2, 1 x 3.
ATTENTION = {
    *{"120"},
    *{"450", "461", "472", "453"},
    *{"240", "341"},
    *{"460", "561", "472", "573"},
    *{"360", "461", "562"},
}
PRODUCTS = {
    "packed_linear_tiles": ("tdpbf16ps", TWO_BY_TWO),
    "packed_linear_dequantized_tiles": ("tdpbf16ps", TWO_BY_TWO),
    "packed_linear_quantized_tiles": ("tdpbsud", TWO_BY_TWO),
    "attention_tiles": ("tdpbf16ps", ATTENTION),
    "attention_backward_tiles": ("tdpbf16ps", ATTENTION),
}


@pytest.mark.parametrize("kernel", PRODUCTS)
def test_instructions(kernel: str) -> None:
    """The compiler's output, read by a disassembler: products of the right tiles and signs, and a load and
    a release of the configuration for every session."""
    name = f"CMakeFiles/afnext_{kernel}_amx.dir/csrc/cpu/{kernel}.cpp.o"
    done = subprocess.run(["objdump", "-d", "--no-show-raw-insn", LIBRARIES[-1].parent / name],
                          capture_output=True, text=True)  # fmt: skip
    if "ldtilecfg" not in done.stdout:
        pytest.skip("objdump knows no AMX, or the compiler did not")
    instructions = [
        line.split("\t")[-1].split() for line in done.stdout.splitlines() if "\t" in line
    ]
    product, tiles = PRODUCTS[kernel]
    products = {(i[0], re.sub(r"\D", "", i[1])) for i in instructions if i[0].startswith("tdp")}
    assert products == {(product, operands) for operands in tiles}
    counts = Counter(i[0] for i in instructions)
    assert counts["tilerelease"] >= counts["ldtilecfg"] > 0


@needs_bochs
def test_detection(run: Runner) -> None:
    """A Sapphire Rapids is `amx` where the system grants the tiles, and the level below where not."""
    [(levels,)] = run([Call(1, results=(((2,), torch.int64),))])
    assert [runtime.LEVELS[i] for i in levels] == ["avx512_bf16", "amx"]


def assert_near(outs: list[tuple[Tensor, ...]], expected: list[Tensor], tolerance: float) -> None:
    for (out,), truth in zip(outs, expected, strict=True):
        assert (out.double() - truth).norm() / truth.norm() < tolerance


@needs_bochs
def test_dense(run: Runner) -> None:
    """bfloat16 against float64: whole and broken tiles and panels, one chunk of K and more."""
    calls, expected = [], []
    for m, n, k in [(1, 33, 70), (16, 32, 32), (17, 64, 640), (40, 40, 96), (70, 70, 1100)]:
        x, weight, bias = (torch.randn(shape).bfloat16() for shape in ((m, k), (n, k), (n,)))
        calls.append(linear(x, ops.pack(weight), bias))
        expected.append(F.linear(x.double(), weight.double(), bias.double()))
    assert_near(run(calls), expected, tolerance=2.0**-8)  # bfloat16's own rounding


def bytes_without_sign(m: int, k: int) -> Tensor:
    """Rows whose integers have no negative byte, neither as 8 bits nor as 16: Bochs 3.0 takes every byte of
    a product of tiles as unsigned, which later versions do not."""
    x = torch.randint(0, 127, (m, k)) + torch.rand(m, k) * 0.45
    x[:, ::128] = 127.0  # the largest of its block
    return x


@needs_bochs
@pytest.mark.parametrize(("activations", "tolerance"), [("int16", 1e-4), ("int8", 1e-2)])
def test_quantised(run: Runner, activations: str, tolerance: float) -> None:
    """int8 and int4 weights against float64 on the same integers; what rounding x costs is allowed."""
    calls, expected = [], []
    for format, zero_points in [("int8", False), ("int8-g128", False), ("int4-g128", False),
                                ("int4-g128", True)]:  # fmt: skip
        for m, n, k in [(16, 33, 70), (33, 40, 259), (50, 64, 640)]:
            weight = ops.quantize(torch.randn(n, k), format, zero_points=zero_points)
            x = bytes_without_sign(m, k)
            calls.append(linear(x, ops.pack(weight, activations=activations)))
            expected.append(F.linear(x.double(), weight.dequantize(torch.float64)))
    assert_near(run(calls), expected, tolerance)


@needs_bochs
def test_attention(run: Runner) -> None:
    """bfloat16 by torch's own error against float64: 1 to 3 vectors of queries, broken tiles and panels,
    packed and in pages."""
    bf16 = torch.bfloat16
    cases = [
        (make_case([30], kv_heads=1, dim=64, dtype=bf16), 0),
        (make_case([45], kv_heads=1, group=7, dim=128, dtype=bf16, causal=True), 0),
        (make_case([290], kv_heads=1, dim=32, dtype=bf16, causal=True), 0),
        (make_case([70], [330], kv_heads=1, group=3, dim=64, dtype=bf16, causal=True), 32),
    ]
    outs = run([attention(*case) for case in cases])
    for (case, _), results in zip(cases, outs, strict=True):
        ours, torchs, truth = (
            dict(zip(("out", "lse"), (t.double() for t in pair), strict=True))
            for pair in (results, oracle(case, bf16), oracle(case, torch.float64))
        )
        assert_gold(ours, torchs, truth, bf16)


@needs_bochs
def test_emulated_tiles_give_the_same_bits(run: Runner) -> None:
    """What the kernels are tested on where there is no AMX: sums, NaN, infinity, subnormal input."""
    x = torch.randn(40, 200)
    x[4, 7], x[5, 9], x[6, 11] = torch.nan, torch.inf, 1e-40
    weight = torch.randn(70, 200)
    packings = [(x.bfloat16(), ops.pack(weight))]
    packings += [
        (bytes_without_sign(40, 200), ops.pack(ops.quantize(weight, "int8"), activations="int16")),
        (
            bytes_without_sign(40, 200),
            ops.pack(ops.quantize(weight, "int4-g128"), activations="int8"),
        ),
    ]
    # More than one chunk of K, and tiles enough for panels to come in blocks.
    deep = ops.quantize(torch.randn(40, 900), "int4-g128", zero_points=True)
    packings.append((bytes_without_sign(80, 900), ops.pack(deep, activations="int8")))
    outs = run([linear(x, packed) for x, packed in packings])
    for (x, packed), (out,) in zip(packings, outs, strict=True):
        emulated = torch.empty_like(out)
        compiled.packed_linear_tiles(x, packed.data, None, None, packed.kernel, packed.n, packed.k,
                                     False, "", emulated)  # fmt: skip
        assert torch.equal(out.isnan(), emulated.isnan())
        assert torch.equal(out.nan_to_num(), emulated.nan_to_num())
