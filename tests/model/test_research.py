"""What researchers lean on: hooks, embeddings, masks, adapters, autocast, compilation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from afnext.audio.windows import AudioWindow
from afnext.model import AudioBatch, AudioLanguageModel

Clip = Callable[..., list[AudioWindow]]


@pytest.fixture
def net(flamingo: Any) -> AudioLanguageModel:
    """A fresh copy, since these tests change it."""
    return AudioLanguageModel.from_pretrained(flamingo.folder)


@pytest.fixture
def example(clip: Clip, prompt: Any) -> tuple[Tensor, AudioBatch]:
    windows = clip(2.2)
    return torch.tensor([prompt(windows)]), AudioBatch.collate([windows])


@torch.no_grad()
def test_every_module_is_called(net: AudioLanguageModel, example: Any) -> None:
    """Forward hooks fire on every named module but lists and holders of constants."""
    called = set()
    for name, module in net.named_modules():
        module.register_forward_hook(lambda *_, name=name: called.add(name))
    net(*example)
    silent = {name for name, _ in net.named_modules()} - called
    assert silent == {
        "audio_tower.layers", "language_model.model.layers", "rote.inv_freq",
        "language_model.model.inv_freq",
    }  # fmt: skip


@torch.no_grad()
def test_a_hook_can_change_the_result(net: AudioLanguageModel, example: Any) -> None:
    before = net(*example)
    net.audio_tower.layers[1].self_attn.register_forward_hook(lambda m, i, out: 2 * out)
    assert (net(*example) - before).abs().max() > 1e-2


@torch.no_grad()
def test_inputs_embeds(net: AudioLanguageModel, example: Any) -> None:
    ids, audio = example
    expected = net(ids, audio)
    embeds = net.embed(ids, audio)
    assert torch.equal(net(None, inputs_embeds=embeds), expected)
    text = net.language_model.model.embed_tokens(ids)
    assert torch.equal(net(ids, audio, inputs_embeds=text), expected)
    assert not torch.allclose(net(ids, audio, inputs_embeds=text * 1.1), expected)


@torch.no_grad()
def test_dense_mask_equals_packed(net: AudioLanguageModel, example: Any) -> None:
    ids, audio = example
    causal = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()[None, None]
    expected = net(ids, audio)
    got = net(ids, audio, attention_mask=causal)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_questions_share_an_audio_prefix(net: AudioLanguageModel, clip: Clip, prompt: Any) -> None:
    """Two questions after one recording in one row, under a mask that hides the first from the
    second, equal two rows.
    """
    windows = clip(2.0)
    prefix, first, second = prompt(windows, after=0), [11, 12, 13, 14], [21, 22, 23]
    ids = torch.tensor([prefix + first + second])
    p, f, s = len(prefix), len(first), len(second)
    mask = torch.ones(p + f + s, p + f + s, dtype=torch.bool).tril()
    mask[p + f :, p : p + f] = False
    positions = torch.tensor([[*range(p + f), *range(p, p + s)]])
    audio = AudioBatch.collate([windows])
    got = net(ids, audio, attention_mask=mask[None, None], position_ids=positions)[0]
    one = net(torch.tensor([prefix + first]), audio)[0]
    two = net(torch.tensor([prefix + second]), audio)[0]
    torch.testing.assert_close(got[: p + f], one, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(got[p + f :], two[p:], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dense", [False, True])
def test_trains_under_autocast(net: AudioLanguageModel, example: Any, dense: bool) -> None:
    ids, audio = example
    mask = None
    if dense:
        mask = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()[None, None]
    with torch.no_grad():
        exact = net(ids, audio)
    with torch.autocast("cpu", torch.bfloat16):
        rough = net(ids, audio, attention_mask=mask)
        torch.nn.functional.cross_entropy(rough[0, :-1].float(), ids[0, 1:]).backward()
    assert (rough - exact).abs().max() < 0.05 * exact.abs().max()
    for name, p in net.named_parameters():
        if p.requires_grad:
            assert p.grad is not None, name
            assert bool(p.grad.isfinite().all()), name


@pytest.mark.parametrize("packed", [True, False])
def test_gradients_equal_transformers(
    flamingo: Any,
    net: AudioLanguageModel,
    clip: Clip,
    prompt: Any,
    their_features: Any,
    packed: bool,
) -> None:
    """float32, outside autocast, through the ops (packed) and through plain torch (dense)."""
    windows = clip(2.2)
    ids, theirs = torch.tensor([prompt(windows)]), flamingo.theirs
    length = ids.shape[1]
    mask = None if packed else torch.ones(length, length, dtype=torch.bool).tril()[None, None]
    theirs.zero_grad()
    logits = theirs(input_ids=ids, **their_features(windows)).logits
    torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:]).backward()
    logits = net(ids, AudioBatch.collate([windows]), attention_mask=mask)
    torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:]).backward()
    ours = dict(net.named_parameters())
    for name, p in theirs.named_parameters():
        if p.grad is None:
            continue
        mine = ours[_on_disk(name)].grad
        assert mine is not None, name
        # Sums in another order, through two networks: 1e-3 of the largest entry.
        torch.testing.assert_close(
            mine, p.grad, atol=1e-3 * float(p.grad.abs().max()), rtol=0, msg=name
        )
    theirs.zero_grad()


def _on_disk(name: str) -> str:
    from afnext.model.checkpoint import canonical_name

    return canonical_name(name)


def test_lora(net: AudioLanguageModel, example: Any) -> None:
    """PEFT wraps the projections, trains only its own weights, merges to the same logits."""
    peft = pytest.importorskip("peft")
    ids, audio = example
    with torch.no_grad():
        before = net(ids, audio)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "linear_1", "down_proj"])
    wrapped = peft.get_peft_model(net, config)
    with torch.no_grad():
        assert torch.equal(wrapped(ids, audio), before)
    optimiser = torch.optim.SGD([p for p in wrapped.parameters() if p.requires_grad], lr=0.5)
    losses = []
    for _ in range(3):
        loss = torch.nn.functional.cross_entropy(wrapped(ids, audio)[0, :-1], ids[0, 1:])
        losses.append(float(loss.detach()))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[-1] < losses[0]
    trained = [n for n, p in wrapped.named_parameters() if p.grad is not None]
    assert trained
    assert all("lora_" in n for n in trained)
    with torch.no_grad():
        after = wrapped(ids, audio)
        assert (after - before).abs().max() > 1e-3
        merged = wrapped.merge_and_unload()
        torch.testing.assert_close(merged(ids, audio), after, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_bfloat16(flamingo: Any, example: Any) -> None:
    """All in bf16, features and frequencies given in float32: near the float32 model."""
    net = AudioLanguageModel.from_pretrained(flamingo.folder, dtype=torch.bfloat16)
    got, exact = net(*example), flamingo.ours(*example)
    assert got.dtype == torch.bfloat16
    assert (got.float() - exact).abs().mean() < 0.05 * exact.abs().mean()
    moved = AudioLanguageModel.from_pretrained(flamingo.folder).to(torch.bfloat16)
    assert torch.equal(moved(*example), got)


@pytest.mark.slow
@torch.no_grad()
def test_compiles_without_graph_breaks(net: AudioLanguageModel, example: Any) -> None:
    """``fullgraph`` fails on any break: the decoder alone, then the model with its audio."""
    ids, audio = example
    embeds = net.embed(ids, audio)
    expected = net(None, inputs_embeds=embeds)
    decoder = torch.compile(net.language_model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(decoder(embeds), expected, atol=1e-5, rtol=1e-5)
    whole = torch.compile(net, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(whole(ids, audio), expected, atol=1e-5, rtol=1e-5)
