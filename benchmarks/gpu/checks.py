"""What of afnext needs a GPU to be tried at all, with the model in the package: right, or what is wrong.

    python -m benchmarks.gpu.checks [--only WORDS]

Needs afnext's own requirements beside torch (soundfile, soxr, tokenizers, ..). A check is a function whose
name says what holds; each takes seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from .build import load_module

CHECKS: list[Callable[[], None]] = []
SCENE = Path(__file__).parents[2] / "examples" / "scene.flac"
QUESTION = "What sounds do you hear, and when?"
CUDA = torch.device("cuda")


def check(function: Callable[[], None]) -> Callable[[], None]:
    """One of the checks, in the order of this file."""
    CHECKS.append(function)
    return function


@cache
def known() -> str:
    """What the CPU says, in float32."""
    import afnext

    return afnext.load("nano", device="cpu", dtype="float32").ask(SCENE, QUESTION).text


def same_sounds(text: str, other: str | None = None) -> None:
    """Two answers name the same sounds, at times that are at most 0.2 s apart."""
    pattern = r"(\w+) <t>([\d.]+)-([\d.]+)</t>"
    found, wanted = (re.findall(pattern, said) for said in (text, other or known()))
    assert [name for name, *_ in found] == [name for name, *_ in wanted], (text, other or known())
    for (_, *times), (_, *others) in zip(found, wanted, strict=True):
        for a, b in zip(times, others, strict=True):
            assert abs(float(a) - float(b)) < 0.21, (text, other or known())


@check
def answers_are_those_of_the_whole_model() -> None:
    from .engine_rows import check_nano

    check_nano(CUDA)


@check
def every_dtype_and_format_answers_as_the_cpu_does() -> None:
    import afnext

    ways: list[dict[str, Any]] = [{"dtype": "float32"}, {}]
    ways += [{"quantization": quantization} for quantization in ("int8", "fp8", "int4")]
    for options in ways:
        for cache_dtype in (None, "int8", "fp8"):
            model = afnext.load("nano", device="cuda", kv_cache_dtype=cache_dtype, **options)
            same_sounds(model.ask(SCENE, QUESTION).text)


@check
def folders_of_integers_answer_as_what_is_quantised_at_load() -> None:
    import afnext
    from afnext.convert import convert

    with TemporaryDirectory() as folder:
        for quantization in ("int8", "int4", "fp8"):
            made = convert("nano", Path(folder) / quantization, quantization=quantization)
            model = afnext.load(made, device="cuda")
            same_sounds(model.ask(SCENE, QUESTION).text)


@check
def an_adapter_is_merged_on_the_device() -> None:
    from safetensors.torch import save_file

    import afnext

    name = "language_model.model.layers.0.self_attn.q_proj"
    generator = torch.Generator().manual_seed(0)
    with TemporaryDirectory() as folder:
        config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4}
        (Path(folder) / "adapter_config.json").write_text(json.dumps(config))
        a, b = (torch.randn(*shape, generator=generator) * 0.02 for shape in ((4, 256), (256, 4)))
        tensors = {f"base_model.model.{name}.lora_{x}.weight": t for x, t in (("A", a), ("B", b))}
        save_file(tensors, Path(folder) / "adapter_model.safetensors")
        nets = [
            afnext.load("nano", device=d, dtype="float32", adapter=folder).net
            for d in ("cpu", "cuda")
        ]
        plain = afnext.load("nano", device="cpu", dtype="float32").net
    weights = [net.get_parameter(f"{name}.weight") for net in nets]
    assert weights[1].device.type == "cuda"
    torch.testing.assert_close(weights[1].cpu(), weights[0])
    assert not torch.equal(weights[0], plain.get_parameter(f"{name}.weight"))


@check
def pages_are_kept_on_disk_while_graphs_are_captured() -> None:
    """The writer copies pages just when the first decode step is captured; nobody fails, and the next day's
    questions find them.
    """
    import afnext

    with TemporaryDirectory() as folder:
        for day in range(2):
            for _ in range(4):  # captures anew each time
                model = afnext.load("nano", device="cuda", disk_cache=folder)
                replies = model.replies(
                    [
                        afnext.Message("user", QUESTION, SCENE),
                        afnext.Message("user", "Who speaks?", SCENE),
                    ]
                )
                same_sounds(replies[0].text)
                model.engine.flush()
                store = model.engine.disk_cache
                assert store is not None
                assert store.writable
            assert replies[0].usage.cached_tokens > 0, day


@check
def no_numbers_are_an_error() -> None:
    from afnext.engine import Engine, GenerationParams
    from afnext.hub import find_model
    from afnext.model import AudioLanguageModel

    net = AudioLanguageModel.from_pretrained(find_model("nano"), dtype=torch.float32, device=CUDA)
    with torch.no_grad():
        net.language_model.model.norm.weight.fill_(float("nan"))
    for temperature in (0.0, 1.0):
        params = GenerationParams(max_tokens=9, temperature=temperature)
        handle = Engine(net, []).submit([1, 2], params=params)
        refused(handle.result, RuntimeError, "no numbers")


def refused(call: Callable[[], object], kind: type[Exception], words: str) -> None:
    """What must fail, with these words."""
    try:
        made = call()
    except kind as error:
        if words not in str(error):
            raise
    else:
        raise AssertionError(f"went through: {made}")


@check
def captures_refuse_what_is_uploaded() -> None:
    """Attention over several sequences reads tables that the host makes; a graph would read them when they
    are gone. One sequence is captured, and right.
    """
    from afnext import ops

    q, k, v = (torch.randn(64, 4, 64, device=CUDA, dtype=torch.bfloat16) for _ in range(3))
    ends = torch.tensor([0, 20, 64], dtype=torch.int32, device=CUDA)
    wanted = ops.attention(q, k, v)[0]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = ops.attention(q, k, v)[0]
    out.zero_()
    graph.replay()
    torch.testing.assert_close(out, wanted)

    def captured() -> None:
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            ops.attention(q, k, v, cu_seqlens_q=ends)

    refused(captured, Exception, "captur")
    torch.cuda.synchronize()
    torch.testing.assert_close(ops.attention(q, k, v)[0], wanted)


SYNCHRONOUS = """
from types import SimpleNamespace
import torch
from benchmarks.gpu.build import load_module
compiled = load_module(cuda=True)

class Nowhere:  # memory that no kernel may read
    shape, dtype, device = (8,), torch.float32, SimpleNamespace(type="cuda", index=0)
    data_ptr, stride = (lambda self: 16), (lambda self: (1,))

x, weight, out = (torch.ones(*shape, device="cuda") for shape in ((2, 8), (8,), (2, 8)))
compiled.rms_norm(x, None, weight, 0.0, out, None)
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    compiled.rms_norm(x, None, weight, 0.0, out, None)
graph.replay()
torch.cuda.synchronize()
print("captured", flush=True)
compiled.rms_norm(x, None, Nowhere(), 0.0, out, None)
"""


@check
def a_fault_is_raised_where_it_was_made_and_captures_work_meanwhile() -> None:
    """``AFNEXT_SYNC=1``, in a process of its own, which a fault leaves without a usable device."""
    run = [sys.executable, "-c", SYNCHRONOUS]
    environment = {**os.environ, "AFNEXT_SYNC": "1"}
    done = subprocess.run(
        run, env=environment, cwd=SCENE.parents[1], capture_output=True, text=True, check=False
    )
    assert "captured" in done.stdout, done.stderr[-2000:]
    named = r"rms_norm: .*rms_norm_kernel.*: .* \(on float32 \[2, 8\] on cuda:0\)"
    assert re.search(named, done.stderr), done.stderr[-2000:]


@check
def ranks_that_share_a_sequence_are_one_process() -> None:
    """Threads on streams of their own; outputs and gradients are as far from float32's on the CPU as one
    process's are.
    """
    from afnext.parallel import local_links, run_local
    from tests.parallel.cases import NAMES, Case, error, local, whole

    for dtype in (torch.float32, torch.bfloat16):
        for overlap in (True, False):
            options = (("overlap", overlap),)
            case = Case(2, 2, cu_seqlens=(0, 5, 700, 1024), dim=64, dtype=dtype, options=options)
            truth, there = whole(case, torch.float32), replace(case, device=str(CUDA))
            for name, got, one, wanted in zip(
                NAMES, local(there), whole(there), truth, strict=True
            ):
                limit = 3 * error(one.cpu(), wanted) + 2e-6
                assert error(got.cpu(), wanted) <= limit, (name, dtype, overlap)
    if CUDA.type == "cuda":
        streams = run_local(local_links(2, 2), lambda link: torch.cuda.current_stream())
        assert len({torch.cuda.current_stream(), *streams}) == 5


@check
def half_an_hour_is_heard() -> None:
    import afnext

    rng = np.random.default_rng(0)
    samples = (rng.standard_normal(1800 * 16_000) * 0.02).astype(np.float32)
    model = afnext.load("nano", device="cuda")
    began = time.perf_counter()
    reply = model.ask(samples, QUESTION, max_tokens=64)
    print(f"  half an hour: {time.perf_counter() - began:.2f} s", flush=True)
    assert reply.usage.audio_tokens == 45_000
    assert reply.text


@check
def a_chain_is_trained_and_watched() -> None:
    """With Muon, then adapters over layers that are computed again; weights end near the CPU's."""
    import soundfile
    from safetensors.torch import load_file

    from afnext.hub import find_model
    from afnext.training import loop, train
    from afnext.training.config import LoraConfig, SourceConfig, StageConfig, TrainConfig

    with TemporaryDirectory() as folder:
        rng, records = np.random.default_rng(1), []
        for number, seconds in enumerate((2.0, 3.5, 31.0, 1.0)):
            soundfile.write(
                Path(folder) / f"{number}.wav",
                rng.standard_normal(int(16_000 * seconds)) * 0.05,
                16_000,
            )
            said = [
                {"from": "human", "value": "<sound>\nWhat is it?"},
                {"from": "gpt", "value": f"Noise number {number}."},
            ]
            records.append({"id": str(number), "sound": f"{number}.wav", "conversations": said})
        (Path(folder) / "mine.json").write_text(json.dumps(records))
        common: dict[str, Any] = {
            "mixture": {"mine": 1.0},
            "audio_seconds": 40.0,
            "batch_tokens": 900,
        }
        stages = [
            StageConfig("all", 3, {"net": 1e-4}, optimizer="muon", accumulate=2, **common),
            StageConfig("more", 3, {"lora": 1e-3}, freeze=["net"],
                        lora=LoraConfig(4, 8.0, "language_model.*_proj"), activations="recompute", **common),
        ]  # fmt: skip
        config = TrainConfig(
            "check", stages, init="nano", sources={"mine": SourceConfig(f"{folder}/mine.json")},
            bf16=False, evaluate_every=2, save_every=2, threads=4, workers=2,
            export_dtype="float32",
        )  # fmt: skip
        ends = []
        for device in ("cpu", "cuda"):
            # What is held out is what is trained on: here it is only to be watched.
            prepared = loop.prepare

            def watched(*given: Any, made: Any = prepared) -> Any:
                sources, _ = made(*given)
                return sources, sources

            loop.prepare = watched  # type: ignore[assignment]
            try:
                made = train(replace(config, device=device), f"{folder}/{device}")
            finally:
                loop.prepare = prepared
            lines = (Path(folder) / device / "log.jsonl").read_text().splitlines()
            log = [json.loads(line) for line in lines]
            assert sum(record["kind"] == "held-out" for record in log) == 4
            ends.append(load_file(made / "model.safetensors"))
        before = load_file(find_model("nano") / "model.safetensors")
        moved, apart = (
            sum(float((a[name].float() - b[name].float()).square().sum()) for name in a) ** 0.5
            for a, b in ((before, ends[0]), (ends[0], ends[1]))
        )
        print(f"  weights moved by {moved:.3g}, and are {apart:.3g} apart", flush=True)
        assert apart < 0.1 * moved


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 1 where anything is wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.checks", description=__doc__)
    parser.add_argument("--only", default="", help="a regular expression on checks' names")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("gpu: torch sees no GPU", file=sys.stderr)
        return 2
    load_module(cuda=True)
    failed = 0
    for function in CHECKS:
        name = function.__name__.replace("_", " ")
        if not re.search(options.only, name):
            continue
        began = time.perf_counter()
        try:
            function()
        except Exception as error:
            import traceback

            failed += 1
            place = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{place.filename}:{place.lineno}"
            print(f"FAILED {name}: {type(error).__name__}: {error} ({where})", flush=True)
        else:
            print(f"right: {name} ({time.perf_counter() - began:.1f} s)", flush=True)
    print(f"{failed} of {len(CHECKS)} checks failed", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
