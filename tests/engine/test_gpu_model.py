"""A GPU's way through the model, on a CPU: the same as the modules', and tokens in a row are single ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import afnext
from afnext import ops
from afnext.audio import AudioWindow
from afnext.convert import convert
from afnext.engine import Engine, GenerationParams, stepper
from afnext.engine.decode_graphs import MOST_AHEAD, DecodeGraphs
from afnext.engine.gpu_model import GPU_FORMATS, GpuModel, place
from afnext.engine.look_ahead import AHEAD, UNKNOWN, at_once
from afnext.engine.packed import STORED, require_quantization, stored_quantization
from afnext.engine.paged_attend import LONG
from afnext.engine.pages import PagePool, Sequence
from afnext.engine.request import Request
from afnext.engine.runner import Runner
from afnext.engine.sampler import Sampler
from afnext.engine.scheduler import Part
from afnext.model import AudioBatch, AudioLanguageModel
from afnext.model.quantized import kept
from tests.engine.models import as_on_a_gpu, heard, recomputed, small_model, window

CUDA = torch.device("cuda")
GREEDY = Sampler(GenerationParams(), [], 50).rows(1)


@pytest.fixture
def net() -> AudioLanguageModel:
    return small_model()


@pytest.fixture
def engine(net: AudioLanguageModel) -> Engine:
    return as_on_a_gpu(Engine(net, [], cache_bytes=1 << 20))


def pool(net: AudioLanguageModel, pages: int = 16, page_size: int = 8) -> PagePool:
    made = PagePool(net.config.text, pages, page_size, torch.float32, torch.device("cpu"))
    for tensor in made.tensors:
        tensor.fill_(float("nan"))  # what is not appended must not be read
    return made


@torch.inference_mode()
def test_prefill_and_decode_give_what_one_forward_gives(net: AudioLanguageModel) -> None:
    ids = torch.randint(0, 50, (30,))
    runner = as_on_a_gpu(Engine(net, [])).runner
    sequence = Sequence(runner.new_pool(32, 8), 32)
    table = net.language_model.model.embed_tokens
    logits = [
        runner.prefill(table(ids[:7]), sequence),
        runner.prefill(table(ids[7:20]), sequence),
    ]
    logits += [runner.decode(int(token), sequence) for token in ids[20:]]
    expected = net(ids[None])[0][[6, 19, *range(20, 30)]]
    torch.testing.assert_close(
        torch.stack(logits), expected, rtol=0, atol=2e-5 * float(expected.abs().max())
    )


@torch.inference_mode()
@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_quantised_layers_are_those_that_their_integers_stand_for(
    net: AudioLanguageModel, quantization: str
) -> None:
    """Products round x too on a CPU, so closeness is of that size."""
    layers, head = GPU_FORMATS[quantization]
    model = GpuModel(net, quantization)
    rounded = small_model()
    for name, module in rounded.language_model.named_modules():
        if isinstance(module, torch.nn.Linear):
            format = head if name == "lm_head" else layers
            module.weight.data = afnext.ops.quantize(module.weight, format).dequantize()
    ids = torch.randint(0, 50, (20,))
    graphs = DecodeGraphs(net, model, pool(net))
    table = torch.tensor([[2, 0, 5]], dtype=torch.int32)
    logits = [graphs([int(token)], [n], table)[0].clone() for n, token in enumerate(ids)]
    expected = rounded(ids[None])[0]
    error = (torch.stack(logits) - expected).norm() / expected.norm()
    exact = net(ids[None])[0]
    lost = (torch.stack(logits) - exact).norm() / exact.norm()
    assert error < min(0.05, 0.5 * lost)


@torch.inference_mode()
@pytest.mark.parametrize("quantization", STORED)
def test_integers_of_a_folder_are_packed_as_they_are(
    quantization: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert("nano", tmp_path / "out", quantization=quantization)
    net = AudioLanguageModel.from_pretrained(tmp_path / "out", integers_alone="language_model.")
    assert stored_quantization(net) == quantization
    assert not any(p.is_meta for p in net.audio_tower.parameters())
    layer, model = net.language_model.model.layers[0], net.language_model
    assert layer.self_attn.k_proj.weight.is_meta
    packed: list[tuple[object, object]] = []
    whole = SimpleNamespace(nbytes=0)
    monkeypatch.setattr(ops, "pack", lambda *args, **_: packed.append(args) or whole)
    GpuModel(net, quantization)
    layers, head, _ = STORED[quantization]
    formats = [w.format for (w,) in packed]
    assert formats == [layers] * (len(formats) - 1) + [head]
    (qkv,), (final,) = packed[0], packed[-1]
    projections = (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj)
    values = torch.cat([kept(p.weight).values for p in projections])
    assert torch.equal(qkv.values.view(torch.uint8), values.view(torch.uint8))
    assert torch.equal(final.scales, kept(model.lm_head.weight).scales)


@torch.inference_mode()
def test_tokens_in_a_row_are_those_of_single_steps(net: AudioLanguageModel) -> None:
    """Three sequences of different lengths in a step for four; their pages lie anywhere."""
    model, tables = GpuModel(net, None), [[3, 1, 9], [0, 4, 7], [8, 2, 11]]
    table = torch.tensor(tables, dtype=torch.int32)
    starts = [0, 0, 0]
    single, row = (DecodeGraphs(net, model, pool(net)) for _ in range(2))
    for step in range(5):  # sequences of 5, 3 and 1 tokens
        who = [n for n, length in enumerate((5, 3, 1)) if step < length]
        for graphs in (single, row):
            graphs([7 * n + step for n in who], [starts[n] for n in who], table[who])
        for n in who:
            starts[n] += 1
    ids, said = [11, 12, 13], []
    begun = list(starts)
    given = list(ids)
    for _ in range(MOST_AHEAD):
        ids = single(ids, starts, table).argmax(-1).tolist()
        starts = [start + 1 for start in starts]
        said.append(ids)
    assert row.ahead(given, begun, table, [GREEDY * MOST_AHEAD] * 3) == said
    assert len({tuple(tokens) for tokens in said}) > 3  # otherwise it would prove little


def test_a_step_has_a_limit(net: AudioLanguageModel) -> None:
    graphs = DecodeGraphs(net, GpuModel(net, None), pool(net))
    with pytest.raises(ValueError, match="rows"):
        graphs.ahead([1], [0], torch.zeros(1, 1, dtype=torch.int32), [GREEDY * (MOST_AHEAD + 1)])


def test_answers_are_those_of_the_whole_model(net: AudioLanguageModel, engine: Engine) -> None:
    """Of several lengths, so that one ends within a row of tokens and the others go on."""
    windows = [window(1.0, seed=1)]
    prompts = [(heard(windows, [3], [4, 5]), windows), ([5, 6, 7], []), ([9], [])]
    counts = (1, AHEAD + 1, 2 * AHEAD + 3)
    handles = [
        engine.submit(ids, audio, GenerationParams(max_tokens=count))
        for (ids, audio), count in zip(prompts, counts, strict=True)
    ]
    for handle, (ids, audio), count in zip(handles, prompts, counts, strict=True):
        assert handle.result().tokens == recomputed(net, ids, audio, count)
    stats = engine.stats()
    assert stats.free_pages == stats.pages
    assert stats.draft_tokens == 0  # tokens in a row are no guesses


def test_drawn_tokens_are_the_same_in_a_row(
    net: AudioLanguageModel, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside a greedy answer; the cuts differ, so do the seeds."""
    kinds = [
        GenerationParams(max_tokens=1 + 4 * AHEAD, temperature=t, top_p=p, top_k=k, seed=t_seed)
        for t, p, k, t_seed in (
            (0.9, 0.9, 0, 1),
            (1.5, 1.0, 7, 1),
            (0.0, 1.0, 0, 2),
            (1.5, 1.0, 7, 3),
        )
    ]

    def said(engine: Engine) -> list[list[int]]:
        handles = [engine.submit([5, 6, 7], (), kind) for kind in kinds]
        return [handle.result().tokens for handle in handles]

    ahead = said(engine)
    assert engine.stats().steps == 1 + 4
    assert len({tuple(tokens) for tokens in ahead}) == len(kinds)
    monkeypatch.setattr(stepper, "ask_ahead", lambda scheduler: None)
    other = as_on_a_gpu(Engine(net, [], cache_bytes=1 << 20))
    assert said(other) == ahead
    assert other.stats().steps == 1 + 4 * AHEAD


@torch.inference_mode()
def test_a_draw_of_no_numbers_says_so_and_leaves_others_alone(
    net: AudioLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, table = GpuModel(net, None), torch.tensor([[3], [1]], dtype=torch.int32)
    rows = [[[0.9, 0.0, 1.0, 0.0, number] for number in (0.2, 0.7, 0.4)]] * 2
    expected = DecodeGraphs(net, model, pool(net)).ahead([5, 6], [0, 0], table, rows)
    logits, second = model.logits, torch.tensor([1])
    monkeypatch.setattr(model, "logits", lambda h: logits(h).index_fill(0, second, torch.nan))
    said = DecodeGraphs(net, model, pool(net)).ahead([5, 6], [0, 0], table, rows)
    assert said == [[first, -1] for first, _ in expected]


@pytest.mark.parametrize("ahead", [True, False])
def test_an_answer_ends_where_logits_are_no_numbers(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, ahead: bool
) -> None:
    """In the same words, whether the device draws or the host."""
    if not ahead:
        monkeypatch.setattr(stepper, "ask_ahead", lambda scheduler: None)
    model = engine.runner._gpu
    assert model is not None
    logits, calls = model.logits, []

    def broken(hidden: torch.Tensor) -> torch.Tensor:
        calls.append(hidden)
        good = logits(hidden)
        return good if len(calls) < 3 else torch.full_like(good, torch.nan)

    monkeypatch.setattr(model, "logits", broken)
    handle = engine.submit([5, 6, 7], (), GenerationParams(max_tokens=9, temperature=0.9, seed=1))
    with pytest.raises(RuntimeError, match="no numbers"):
        handle.result()
    assert len(calls) == (1 + AHEAD if ahead else 3)
    stats = engine.stats()
    assert stats.free_pages == stats.pages


def test_tokens_in_a_row_save_steps(engine: Engine) -> None:
    engine.submit([5, 6, 7], (), GenerationParams(max_tokens=1 + 4 * AHEAD)).result()
    assert engine.stats().steps == 1 + 4


def test_the_end_within_a_row_ends_the_answer(net: AudioLanguageModel) -> None:
    said = recomputed(net, [5, 6, 7], [], 12)
    eos = next(t for n, t in enumerate(said) if n % AHEAD == 2 and t not in said[:n])
    engine = as_on_a_gpu(Engine(net, [eos], cache_bytes=1 << 20))
    record = engine.submit([5, 6, 7], (), GenerationParams(max_tokens=12)).result()
    assert record.stopped == "end"
    assert record.tokens == said[: said.index(eos)]


def test_who_asks_for_more_is_served_token_by_token(
    net: AudioLanguageModel, engine: Engine
) -> None:
    """A request with log-probabilities, and one that is guessed for, beside a greedy one."""
    plain = GenerationParams(max_tokens=9)
    kinds = [plain, replace(plain, logprobs=2), replace(plain, speculate=3)]
    handles = [engine.submit([5, 6, 7 + n], (), kind) for n, kind in enumerate(kinds)]
    for number, handle in enumerate(handles):
        record = handle.result()
        assert record.tokens == recomputed(net, [5, 6, 7 + number], [], 9)
        assert len(record.logprobs) == (9 if number == 1 else 0)


def test_parts_agree_on_how_many_tokens() -> None:
    def part(count: int, unknown: bool) -> Part:
        request = Request([1], None, GenerationParams(), 9, 8)
        request.arrival = len(made)
        request.proposals = [UNKNOWN if unknown else 3] * (count - 1)
        made.append(request)
        return Part(request, 0, count, True)

    made: list[Request] = []
    parts, count = at_once([part(4, True), part(3, True)])
    assert ([p.count for p in parts], count) == ([3, 3], 3)
    assert [len(r.proposals) for r in made] == [2, 2]
    parts, count = at_once([part(4, True), part(3, False)])
    assert ([p.count for p in parts], count) == ([1, 3], 0)
    assert [len(r.proposals) for r in made[2:]] == [0, 2]


def test_what_is_packed_stays_where_it_is(net: AudioLanguageModel) -> None:
    place(net, torch.device("meta"))
    there = {name for name, p in net.named_parameters() if p.device.type == "meta"}
    linear = {n for n, m in net.language_model.named_modules() if isinstance(m, torch.nn.Linear)}
    here = {f"language_model.{n}.{part}" for n in linear for part in ("weight", "bias")}
    assert there == {name for name, _ in net.named_parameters()} - here
    assert all(b.device.type == "meta" for b in net.buffers())


def test_formats_are_of_a_device() -> None:
    require_quantization("fp8", CUDA)
    with pytest.raises(ValueError, match="fp8 needs CUDA"):
        require_quantization("fp8")
    with pytest.raises(ValueError, match="int8, int4, fp8"):
        require_quantization("int2", CUDA)
    with pytest.raises(ValueError, match="needs a CPU or CUDA"):
        require_quantization("int8", torch.device("mps"))


def test_a_gpu_without_our_kernels_runs_modules(net: AudioLanguageModel) -> None:
    runner = Runner(net.to("meta"))
    assert not runner.looks_ahead


def test_windows_are_encoded_together(
    net: AudioLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to eight; one that is known ends the row, and one that comes twice is encoded once. Answers are
    those of the whole model, and a second question finds all of them.
    """
    net = small_model(text={"max_position_embeddings": 4096})
    engine = as_on_a_gpu(Engine(net, [], max_step_tokens=64, max_running=4))
    counts: list[int] = []
    encode = engine.runner.encode

    def counted(audio: AudioBatch) -> torch.Tensor:
        counts.append(len(audio.tokens))
        return encode(audio)

    monkeypatch.setattr(engine.runner, "encode", counted)
    windows = [window(0.7, seed) for seed in range(11)]

    def ask(windows: list[AudioWindow], last: int) -> None:
        ids = heard(windows, [1], *[[2]] * (len(windows) - 1), [last])
        said = engine.submit(ids, windows, GenerationParams(max_tokens=6)).result().tokens
        assert said == recomputed(net, ids, windows, 6)

    ask(windows, 3)
    assert counts == [8, 3]
    assert engine.stats().audio_misses == 11
    counts.clear()
    ask(windows, 4)
    ask([window(0.7, 20), windows[3], window(0.7, 21), window(0.7, 22), window(0.7, 21)], 5)
    assert counts == [1, 2]


@pytest.mark.parametrize("chunk", [LONG - 1, LONG, 300])
def test_a_long_chunk_sees_keys_side_by_side(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    net = small_model(text={"max_position_embeddings": 2048})
    engine = as_on_a_gpu(Engine(net, [], max_step_tokens=chunk, max_running=4))
    asked: list[int] = []
    paged = ops.paged_attention

    def seen(q: torch.Tensor, *args: Any, **options: Any) -> Any:
        asked.append(len(q))
        return paged(q, *args, **options)

    monkeypatch.setattr("afnext.engine.paged_attend.ops.paged_attention", seen)
    ids = [7 * i % 50 for i in range(3 * chunk + 20)]
    said = engine.submit(ids, (), GenerationParams(max_tokens=6)).result().tokens
    assert said == recomputed(net, ids, (), 6)
    wanted = {20} | ({chunk} if chunk < LONG else set())
    assert {count for count in asked if count > 1} == wanted
