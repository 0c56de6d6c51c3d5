"""AF-Whisper's pre-training: a decoder that is thrown away writes what the encoder's features say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import afnext
from afnext.audio.windows import AudioWindow
from afnext.model import AudioBatch
from afnext.training import load_recipe, loop
from afnext.training.config import CaptionShape, TrainConfig
from afnext.training.data.packing import NOT_LEARNT, PackedBatch, hear
from afnext.training.distributed.world import Team
from afnext.training.network import answers as answers_module
from afnext.training.network.captions import CaptionDecoder, captions_of
from afnext.training.network.objectives import share
from tests.parallel.processes import spawn
from tests.training.mesh_runs import losses_of

pytestmark = pytest.mark.slow

SHAPE = CaptionShape(width=16, layers=2, heads=2)


def smoke(recipe: TrainConfig, steps: int) -> TrainConfig:
    """The recipe on short recordings, with a small network."""
    chain = load_recipe(Path(afnext.__file__).parent / "recipes" / "af-whisper")
    assert chain.synthesis is not None
    sets = {
        name: [replace(s, count=4, longest=s.shortest + 1) for s in scenes]
        for name, scenes in chain.synthesis.sets.items()
        if name in chain.stages[0].mixture
    }
    (stage,) = chain.stages
    short = replace(stage, steps=steps, batch_tokens=400, train={"audio_tower": 3e-3, "heads": 3e-3},
                    optimizer="adamw", warmup=0.1, accumulate=2)  # fmt: skip
    return replace(
        chain, stages=[short], model=recipe.model, caption_decoder=SHAPE, held_out=None,
        evaluate_every=0, save_every=0, bf16=False, threads=1, workers=1, export_dtype="float32",
        synthesis=replace(chain.synthesis, sets=sets, sentences=24),
    )  # fmt: skip


@pytest.fixture
def run(recipe: TrainConfig, tmp_path: Path, shared_data: Path) -> loop.Run:
    config = smoke(recipe, 30)
    journal = loop.Journal(tmp_path / "log.jsonl", every=0.0)
    return loop.Run(config, tmp_path, *loop.prepare(config, shared_data / "af", journal), journal)


@pytest.fixture
def packed(run: loop.Run) -> PackedBatch:
    batches = run.batches(run.config.stages[0], run.sources)
    return batches.first(1)[0].packed


def test_captions_are_whole_conversations(run: loop.Run, packed: PackedBatch) -> None:
    """What several share is in each of them; all that is learnt is in one."""
    assert run.net.config.audio_token_id is not None
    assert any(packed.trunks), "nothing is shared: the test proves less"
    found = captions_of(packed, run.net.config.audio_token_id)
    assert len(found) == len(packed.tasks)
    learnt = sum(int((c.targets != NOT_LEARNT).sum()) for c in found)
    assert learnt == int((packed.targets != NOT_LEARNT).sum())
    for caption in found:
        text = run.tokenizer.decode(caption.ids.tolist(), skip_special=False)
        assert text.startswith("<|im_start|>")
        assert "<|im_start|>assistant" in text
        own = caption.heard.tolist()
        assert own == list(range(own[0], own[0] + len(own)))


def test_the_loss_is_that_of_each_caption_alone(run: loop.Run, packed: PackedBatch) -> None:
    """By logits of one conversation at a time, without padding."""
    assert run.heads is not None
    decoder, audio_id = run.heads.captions, run.net.config.audio_token_id
    assert isinstance(decoder, CaptionDecoder)
    assert audio_id is not None
    with torch.no_grad():
        encoded = hear(run.net, packed.audio)[0]
        losses, weights = [], torch.rand(int((packed.targets != NOT_LEARNT).sum()))
        of_row = dict(
            zip((packed.targets != NOT_LEARNT).nonzero()[:, 0].tolist(), weights, strict=True)
        )
        for caption in captions_of(packed, audio_id):
            heard = encoded[caption.heard][None]
            hidden = decoder(caption.ids[None], heard, torch.tensor([heard.shape[1]]))[0]
            learnt = caption.targets != NOT_LEARNT
            logits = hidden[learnt] @ decoder.embed.weight.T
            found = F.cross_entropy(logits, caption.targets[learnt], reduction="none")
            assert torch.equal(packed.ids[caption.rows], caption.ids)
            losses += [
                loss * of_row[row]
                for loss, row in zip(found, caption.rows[learnt].tolist(), strict=True)
            ]
        got = decoder.loss(packed, weights, encoded, audio_id)
    torch.testing.assert_close(got, torch.stack(losses).sum())
    assert len(losses) == len(weights)
    # Nobody hears anything.
    assert decoder.loss(packed, weights, encoded, -5) is None


def test_logits_are_never_all_there(
    run: loop.Run, packed: PackedBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the 152K pieces of a large model they would be gigabytes; gradients are the same."""
    assert run.heads is not None
    decoder, audio_id = run.heads.captions, run.net.config.audio_token_id
    assert isinstance(decoder, CaptionDecoder)
    assert audio_id is not None
    learnt, vocabulary = int((packed.targets != NOT_LEARNT).sum()), len(decoder.embed.weight)
    encoded, weights = hear(run.net, packed.audio)[0].detach(), torch.rand(learnt)

    class Watch(TorchDispatchMode):
        rows = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            made = func(*args, **(kwargs or {}))
            if isinstance(made, torch.Tensor) and made.shape[-1:] == (vocabulary,):
                self.rows = max(self.rows, made.shape[0])
            return made

    found = []
    for chunk in (10_000, 20):
        monkeypatch.setattr(answers_module, "CHUNK", chunk)
        with Watch() as watch:
            loss = decoder.loss(packed, weights, encoded, audio_id)
            assert loss is not None
            found.append(torch.autograd.grad(loss, list(decoder.parameters())))
        assert (watch.rows == learnt) == (chunk > learnt)
        assert watch.rows <= chunk
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_each_text_counts_the_same_however_a_step_is_cut(run: loop.Run) -> None:
    """Two batches of different sizes, and one of all of it."""
    stage, sources = run.config.stages[0], run.sources
    apart = [
        run.batches(replace(stage, batch_tokens=tokens), sources).first(1)[0]
        for tokens in (200, 500)
    ]
    assert len(apart[0].weights) < len(apart[1].weights) / 1.3
    totals = []
    for batches in (apart, apart[:1], apart[1:]):
        with torch.no_grad():
            shares = share(batches, stage, Team(), run.world)
            told = sum(float(run.losses(batch, stage)["captions"]) for batch in shares)
        totals.append(told * sum(len(batch.weights) for batch in batches))
    assert totals[0] == pytest.approx(totals[1] + totals[2], rel=1e-5)


def test_text_sees_what_was_before_it_and_all_that_is_heard() -> None:
    torch.manual_seed(2)
    decoder = CaptionDecoder(8, 30, SHAPE)
    ids, audio = torch.randint(30, (1, 9)), torch.randn(1, 6, 8)
    ids_after, audio_after = ids.clone(), audio.clone()
    ids_after[0, 5] += 1 - 2 * (ids[0, 5] == 29)
    audio_after[0, 5] += 1.0
    with torch.no_grad():
        before = decoder(ids, audio, torch.tensor([6]))
        other_text = decoder(ids_after, audio, torch.tensor([6]))
        other_end = decoder(ids, audio_after, torch.tensor([6]))
        beyond = decoder(ids, audio_after, torch.tensor([5]))
        shorter = decoder(ids, audio, torch.tensor([5]))
    assert torch.equal(other_text[:, :5], before[:, :5])
    assert not torch.allclose(other_text[:, 5:], before[:, 5:])
    assert ((other_end - before).abs().amax(2) > 1e-6).all()
    torch.testing.assert_close(beyond, shorter)


@pytest.mark.slow
def test_the_encoder_learns_by_it_and_the_decoder_is_thrown_away(
    run: loop.Run, tmp_path: Path
) -> None:
    before = {name: value.clone() for name, value in run.net.state_dict().items()}
    folder = run.train()
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    losses = [r["captions_loss"] for r in records if r["kind"] == "train"]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    exported = load_file(folder / "model.safetensors")
    assert not any("captions" in name for name in exported)
    for name, value in run.net.state_dict().items():
        moved = not torch.equal(value, before[name])
        assert moved == (name.startswith("audio_tower") and "embed_positions" not in name), name


@pytest.mark.sweep
def test_two_processes_have_the_losses_of_one(recipe: TrainConfig, tmp_path: Path) -> None:
    """The first by rounding alone; later ones by what AdamW makes of that."""
    config, data = smoke(recipe, 3), tmp_path / "data"
    alone = losses_of(config, tmp_path / "alone", data)
    for answers in spawn(2, losses_of, config, tmp_path / "spread", data):
        assert answers[0] == pytest.approx(alone[0], rel=1e-5)
        for found, wanted in zip(answers, alone, strict=True):
            assert found == pytest.approx(wanted, rel=1e-3)


def test_the_encoder_begins_as_whisper_s(
    recipe: TrainConfig, tmp_path: Path, shared_data: Path
) -> None:
    """A folder as transformers writes Whisper: what our encoder gives before it pools is what Whisper's gives
    before its last norm.
    """
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    shape = recipe.model
    torch.manual_seed(4)
    whisper = WhisperForConditionalGeneration(
        WhisperConfig(
            vocab_size=50, num_mel_bins=128, d_model=shape.audio_width, encoder_layers=shape.audio_layers,
            encoder_attention_heads=shape.audio_heads, encoder_ffn_dim=shape.audio_ffn, decoder_layers=1,
            decoder_attention_heads=2, decoder_ffn_dim=16, pad_token_id=0, bos_token_id=1, eos_token_id=2,
            decoder_start_token_id=1,
        )
    )  # fmt: skip
    whisper.save_pretrained(tmp_path / "whisper")
    config = replace(smoke(recipe, 1), audio_tower=str(tmp_path / "whisper"))
    journal = loop.Journal(tmp_path / "log.jsonl")
    run = loop.Run(config, tmp_path, *loop.prepare(config, shared_data / "af", journal), journal)
    encoder, tower = whisper.model.encoder, run.net.audio_tower
    noise = np.random.default_rng(1).standard_normal(480_000).astype(np.float32) * 0.1
    windows = [AudioWindow(noise, 0, len(noise))]
    batch = AudioBatch.collate([windows])
    found: list[torch.Tensor] = []
    handles = [
        m.layers[-1].register_forward_hook(lambda _, __, out: found.append(out))
        for m in (encoder, tower)
    ]
    with torch.no_grad():
        encoder(batch.features[:3000].T[None])
        run.net.encode(batch)
    for handle in handles:
        handle.remove()
    theirs, ours = (x[0] if isinstance(x, tuple) else x for x in found)
    torch.testing.assert_close(ours, theirs.reshape(1500, -1), atol=1e-4, rtol=1e-4)
