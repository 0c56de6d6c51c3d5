"""What was computed is found again where it is true, and nowhere else."""

from __future__ import annotations

import sys
import threading

import pytest
import torch

from afnext.audio import AudioWindow
from afnext.engine import Engine, Generation, GenerationParams
from afnext.engine.audio_cache import AudioCache
from afnext.engine.prefix import PageDigests
from afnext.engine.prompt_audio import PromptAudio
from afnext.model import AudioLanguageModel
from tests.engine.models import SOUND, heard, recomputed, small_model, window

SIX = GenerationParams(max_tokens=6)


def ask(engine: Engine, windows: list[AudioWindow], *question: int) -> Generation:
    return engine.submit(
        heard(windows, [1], *[[2]] * (len(windows) - 1), question), windows, SIX
    ).result()


def test_a_second_question_computes_the_question_alone(net: AudioLanguageModel) -> None:
    engine, clip = Engine(net, []), window(8.0)
    first = ask(engine, [clip], 3, 4)
    second = ask(engine, [clip], 5, 6, 7)
    assert first.cached_tokens == 0
    assert second.cached_tokens == (1 + clip.num_tokens) // 32 * 32
    assert second.tokens == recomputed(net, heard([clip], [1], [5, 6, 7]), [clip], 6)
    stats = engine.stats()
    assert stats.audio_misses == 1
    assert stats.cached_tokens == second.cached_tokens


def test_a_conversation_goes_on_from_its_answer(net: AudioLanguageModel) -> None:
    engine = Engine(net, [])
    for first in range(9):
        ids = [first, *range(1, 50)]
        said = engine.submit(ids, (), GenerationParams(max_tokens=60)).result().tokens
        if SOUND not in said:  # as a tokenizer never makes one of text
            break
    follow = [*ids, *said, 9, 9]
    record = engine.submit(follow, (), SIX).result()
    assert record.cached_tokens == (len(ids) + len(said) - 1) // 32 * 32
    assert record.tokens == recomputed(net, follow, [], 6)


def test_encoded_audio_is_shared_where_prefixes_are_not(net: AudioLanguageModel) -> None:
    """The same window behind another text: new keys and values, but no new encoding."""
    engine, clip = Engine(net, []), window(2.0)
    ask(engine, [clip], 3)
    ids = heard([clip], [8, 8, 8], [3])
    record = engine.submit(ids, [clip], SIX).result()
    assert record.cached_tokens == 0
    assert record.tokens == recomputed(net, ids, [clip], 6)
    assert (engine.stats().audio_hits, engine.stats().audio_misses) == (1, 1)


def test_recordings_with_the_same_placeholders_do_not_meet(net: AudioLanguageModel) -> None:
    engine = Engine(net, [])
    clips = [window(4.0, 1), window(4.0, 2)]
    for order in ([0, 1], [1, 0], [0, 0], [1, 1]):
        windows = [clips[i] for i in order]
        ids = heard(windows, [1], [2], [3])
        assert ask(engine, windows, 3).tokens == recomputed(net, ids, windows, 6)
    assert engine.stats().audio_misses == 2


def test_changed_weights_meet_nothing_old() -> None:
    net = small_model()
    engine, clip = Engine(net, []), window(4.0)
    before = ask(engine, [clip], 3).tokens
    running = engine.submit([4] * 40, (), GenerationParams(max_tokens=80))
    next(running)
    with torch.no_grad():
        for name, p in net.named_parameters():
            if "conv2.weight" in name or "v_proj.weight" in name:
                p.copy_(p.roll(1, 0))
    after = ask(engine, [clip], 3)
    assert after.cached_tokens == 0
    assert after.tokens == recomputed(net, heard([clip], [1], [3]), [clip], 6)
    assert after.tokens != before
    running.result()  # began with the old weights: what it leaves is of no use
    again = engine.submit([4] * 40 + [5], (), SIX).result()
    assert again.cached_tokens == 0
    assert again.tokens == recomputed(net, [4] * 40 + [5], [], 6)
    assert engine.stats().free_pages == engine.stats().pages


def test_caches_can_be_cleared(net: AudioLanguageModel) -> None:
    engine, clip = Engine(net, []), window(4.0)
    ask(engine, [clip], 3)
    assert engine.stats().kept_pages > 0
    engine.clear_caches()
    assert (engine.stats().kept_pages, engine.stats().audio_bytes) == (0, 0)
    assert ask(engine, [clip], 3).cached_tokens == 0


def test_a_window_that_chunks_cut_is_encoded_once(net: AudioLanguageModel) -> None:
    """Also where nothing is kept."""
    engine = Engine(net, [], audio_cache_bytes=0, max_step_tokens=16, max_running=1)
    clip = window(8.0)
    record = ask(engine, [clip], 3)
    assert record.tokens == recomputed(net, heard([clip], [1], [3]), [clip], 6)
    assert (engine.stats().audio_misses, engine.stats().audio_bytes) == (1, 0)


def test_the_audio_cache_drops_what_was_not_used_for_longest() -> None:
    cache, rows = AudioCache(100), torch.zeros(10, 1)  # 40 bytes
    cache.put(b"a", rows)
    cache.put(b"b", rows)
    assert cache.get(b"a") is not None
    cache.put(b"c", rows)
    assert cache.get(b"b") is None
    assert cache.get(b"a") is not None
    assert (len(cache), cache.nbytes, cache.hits, cache.misses) == (2, 80, 2, 1)
    cache.put(b"d", torch.zeros(26))
    assert cache.get(b"d") is None
    assert len(cache) == 2


def digests(ids: list[int], *windows: AudioWindow) -> list[bytes]:
    audio = PromptAudio(ids, windows, SOUND) if windows else None
    return PageDigests(4, audio).upto(ids, len(ids))


def test_digests_tell_everything_before_apart() -> None:
    ids = [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert len(digests(ids)) == 2
    other = [9, *ids[1:]]
    assert digests(other)[1] != digests(ids)[1]
    assert digests([*ids[:8], 1])[1] == digests(ids)[1]


@pytest.mark.parametrize("change", ["samples", "start", "length"])
def test_digests_hear(change: str) -> None:
    one = window(0.4, 1)
    other = {
        "samples": window(0.4, 2),
        "start": window(0.4, 1, start=30.0),
        "length": AudioWindow(one.samples, 0, len(one.samples) - 1),
    }[change]
    assert other.num_tokens == one.num_tokens
    ids = heard([one], [1, 2, 3, 4], [2, 3, 4])
    first, second = digests(ids, one), digests(ids, other)
    assert first[0] == second[0]
    assert not set(first[1:]) & set(second[1:])


def test_stretches_cover_what_is_heard() -> None:
    windows = [window(0.4), window(0.8, 1), window(0.01)]  # the last one has no token
    ids = heard(windows, [1], [2], [3], [4])
    audio = PromptAudio(ids, windows, SOUND)
    for size in (1, 3, 7, 100):
        seen: dict[int, list[int]] = {}
        for first in range(0, len(ids), size):
            for part in audio.stretches(first, first + size):
                assert all(ids[p] == SOUND and first <= p < first + size for p in part.positions)
                rows = seen.setdefault(part.window, [])
                rows += range(part.rows.start, part.rows.stop)
                assert part.ends == (len(rows) == windows[part.window].num_tokens)
        assert seen == {i: list(range(windows[i].num_tokens)) for i in range(2)}


def test_encoded_audio_may_be_cleared_while_it_is_used() -> None:
    """By another thread, in the middle of anything; what is counted is what is held."""
    cache, rows = AudioCache(1 << 20), torch.zeros(4)
    before, done = sys.getswitchinterval(), threading.Event()
    sys.setswitchinterval(1e-6)

    def clear() -> None:
        while not done.is_set():
            cache.clear()

    clearing = threading.Thread(target=clear)
    clearing.start()
    try:
        for _ in range(20_000):
            cache.put(b"a", rows)
            cache.get(b"a")
    finally:
        done.set()
        clearing.join()
        sys.setswitchinterval(before)
    assert cache.nbytes == sum(rows.nbytes for _ in range(len(cache)))
