"""The batch of a step: drawn, read, encoded, packed; a function of seed, stage and step alone."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from afnext.audio.windows import AudioWindow
from afnext.chat import ChatTemplate, Tokenizer
from afnext.errors import AfnextError
from afnext.model import AudioBatch
from afnext.ops.runtime import set_num_threads
from afnext.training.config import StageConfig, TrainConfig, mixture_of
from afnext.training.conversations import Conversation, Turn
from afnext.training.packing import NOT_LEARNT, Encoded, PackedBatch, encode, pack
from afnext.training.sources import AUDIO_TOKENS, Draw, Mixture, Place, Source
from afnext.training.synthesis.scenes import Scene
from afnext.training.targets import Targets, Words
from afnext.training.tasks.script import script
from afnext.training.tasks.sounds import direct
from afnext.training.world import Team

OF = "|"  # between the name of a source and the path of its recording
SCRIPT_TOKENS = 7.0  # a second of a recording as text, about
CACHED = 60_000  # encoded conversations that are kept: about 100 MB


@dataclass(frozen=True)
class Shared:
    """What the processes of a run know of a batch together.

    Attributes:
        team: those that have this batch; other teams have others at the same time.
        own: the windows that this process encodes.
        calls: how often each process calls the encoder.
        labelled, spoken: whether any batch has recordings with labels, with speech.
    """

    team: Team
    own: AudioBatch
    calls: int
    labelled: bool
    spoken: bool


@dataclass(frozen=True)
class Batch:
    """``packed`` conversations, the ``targets`` of their recordings, and what each learnt token weighs
    (float32 ``[learnt]``, in the order of ``packed.targets``). ``seconds`` of audio, each recording once.
    ``shared``: in a run of several processes.
    """

    packed: PackedBatch
    targets: Targets
    weights: Tensor
    seconds: float
    shared: Shared | None = None

    def to(self, device: torch.device) -> Batch:
        """The same batch on ``device``."""
        shared = self.shared and replace(self.shared, own=self.shared.own.to(device))
        return Batch(
            self.packed.to(device), self.targets.to(device), self.weights.to(device), self.seconds,
            shared,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Step:
    """The ``batches`` whose gradients a step adds up; ``left_out``: what was drawn but could not be used, and
    how often.
    """

    batches: list[Batch]
    left_out: dict[str, int]


@dataclass(frozen=True, slots=True)
class _Heard:
    windows: list[AudioWindow]
    scene: Scene | None


class Batches(Dataset[Step]):
    """What a stage trains on.

    Args:
        config: the chain.
        stage: one of its stages.
        sources: by name.
        tokenizer, template: the model's.
        words: of the same tokenizer.
        team: of a step's batches those of this process's team are made.

    Raises:
        AfnextError: the mixture names no source, or has nothing within the stage's limits.
    """

    def __init__(
        self,
        config: TrainConfig,
        stage: StageConfig,
        sources: Mapping[str, Source],
        tokenizer: Tokenizer,
        template: ChatTemplate,
        words: Words,
        team: Team | None = None,
    ) -> None:
        self.team = Team() if team is None else team
        self.stage, self.sources, self.words = stage, sources, words
        self.tokenizer, self.template, self.seed = tokenizer, template, config.seed
        shares = mixture_of(stage, config.stages)
        per_second = AUDIO_TOKENS if stage.hearing == "audio" else SCRIPT_TOKENS
        self.mixture = Mixture(
            sources, shares, stage.audio_seconds, stage.per_recording, per_second
        )
        self.too_long = 0  # conversations beyond the stage's context, left out
        self._encoded: OrderedDict[tuple[str, Place], Encoded] = OrderedDict()

    def batch(self, step: int, part: int = 0) -> Batch:
        """That of a step (and of its ``part``, where gradients are accumulated).

        Raises:
            AfnextError: a record or recording cannot be read, and its source does not skip what is broken.
        """
        stage = self.stage
        for attempt in range(100):
            seed = f"{self.seed}/{stage.name}/{step}/{part}/{attempt}"
            heard: dict[str, _Heard] = {}
            encoded: list[Encoded] = []
            for draw in self.mixture.draw(stage.batch_tokens, seed):
                source = self.sources[draw.source]
                try:
                    encoded += self._conversations(draw, heard)
                except AfnextError as error:
                    if not source.skip_broken:
                        raise
                    source.skipped.add(error)
            if encoded:
                return self._batch(encoded, heard)
        raise AfnextError(f"{stage.name}: nothing that is drawn can be used")

    def _conversations(self, draw: Draw, heard: dict[str, _Heard]) -> list[Encoded]:
        """The encoded conversations of a draw; ``heard`` gains its recordings."""
        places = [draw.entry.records[i] for i in draw.chosen]
        keys = [(draw.source, place) for place in places]
        missing = [i for i, key in zip(draw.chosen, keys, strict=True) if key not in self._encoded]
        if missing:
            found = self.sources[draw.source].conversations(draw.entry, missing)
            for index, said in zip(missing, found, strict=True):
                key = (draw.source, draw.entry.records[index])
                told = _direct(said) if self.stage.answers == "direct" else said
                self._encoded[key] = self._encode(told, draw.source, heard)
                if len(self._encoded) > CACHED:
                    self._encoded.popitem(last=False)
        encoded = [self._encoded[key] for key in keys]
        fitting = [item for item in encoded if len(item.ids) <= self.stage.context_tokens]
        self.too_long += len(encoded) - len(fitting)
        for item in fitting:
            for sound in item.sounds:
                self._hear(sound, heard)
        return fitting

    def _encode(self, item: Conversation, name: str, heard: dict[str, _Heard]) -> Encoded:
        """``item`` of the source called ``name``; its recordings bear that name too: two sources may have
        recordings at the same path.
        """
        source, lengths, scripts = self.sources[name], {}, None
        if self.stage.hearing == "script":
            scenes = {path: source.labels(path) for path in item.sounds}
            scripts = {path: script(scene) for path, scene in scenes.items() if scene}
            if len(scripts) < len(scenes):
                raise AfnextError(f"{item.id}: a script needs labels, and a recording has none")
        else:
            for path in item.sounds:
                found = self._hear(f"{name}{OF}{path}", heard)
                lengths[path] = sum(w.num_tokens for w in found.windows)
        encoded = encode(item, lengths, self.tokenizer, self.template, scripts)
        return replace(
            encoded,
            sounds=tuple(f"{name}{OF}{path}" for path in encoded.sounds),
            begins=encoded.begins and f"{name}{OF}{encoded.begins}",
        )

    def _hear(self, sound: str, heard: dict[str, _Heard]) -> _Heard:
        if sound not in heard:
            name, _, path = sound.partition(OF)
            source = self.sources[name]
            heard[sound] = _Heard(source.windows(path), source.labels(path))
        return heard[sound]

    def _batch(self, encoded: Sequence[Encoded], heard: Mapping[str, _Heard]) -> Batch:
        windows = {path: item.windows for path, item in heard.items()}
        packed = pack(encoded, windows, self.tokenizer.audio_id, share=self.team.size == 1)
        scenes = [heard[path].scene for path in packed.paths]
        targets = self.words.targets(scenes, packed.audio.row_tokens)
        seconds = sum(w.valid_samples for p in packed.paths for w in windows[p]) / 16_000
        weights = answer_weights(packed.targets, self.stage.losses.length_power)
        return Batch(packed, targets, weights, seconds)

    def __len__(self) -> int:
        return self.stage.steps

    def __getitem__(self, step: int) -> Step:
        """All batches of a step (of this process's team), and what had to be left out for them."""
        before = self.left_out()
        team = self.team
        parts = range(team.data_rank, self.stage.accumulate, team.data_size)
        batches = [self.batch(step, part) for part in parts]
        after = self.left_out()
        left_out = {why: n - before.get(why, 0) for why, n in after.items()}
        return Step(batches, {why: n for why, n in left_out.items() if n})

    def left_out(self) -> dict[str, int]:
        """What this object drew but did not use, and how often: by what was wrong, by its source."""
        found = {
            f"{name}: {kind}": count
            for name, source in self.sources.items()
            for kind, count in source.skipped.counts.items()
        }
        return found | ({"longer than the context": self.too_long} if self.too_long else {})

    def ahead(self, first: int, workers: int = 0) -> Iterator[Step]:
        """Each step from ``first`` on, made while those before are in use: by so many processes, or by one
        thread of this one.
        """
        steps = range(first, len(self))
        if workers and steps:
            yield from DataLoader(
                self, batch_size=None, sampler=steps, num_workers=workers, prefetch_factor=4,
                worker_init_fn=_one_thread,
            )  # fmt: skip
            return
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(self.__getitem__, first) if steps else None
            for step in steps:
                assert waiting is not None
                made = waiting.result()
                if step + 1 < len(self):
                    waiting = pool.submit(self.__getitem__, step + 1)
                yield made


def _one_thread(_: int) -> None:
    """So that processes do not fight for cores; torch does the same for its own."""
    set_num_threads(1)


def _direct(item: Conversation) -> Conversation:
    """``item`` with direct answers, where it says of what kind each of its questions is."""
    answers = [turn.text for turn in item.turns if turn.role == "assistant"]
    kinds = item.task.split("+")
    if len(kinds) != len(answers):
        return item
    told = map(direct, kinds, answers)
    turns = (Turn(t.role, (next(told),)) if t.role == "assistant" else t for t in item.turns)
    return replace(item, turns=tuple(turns))


def answer_weights(targets: Tensor, power: float) -> Tensor:
    """float32 ``[learnt]``: n ** -power for each token of a run of n learnt ones."""
    learnt = (targets != NOT_LEARNT).int()
    edges = torch.diff(learnt, prepend=learnt.new_zeros(1), append=learnt.new_zeros(1))
    lengths = (edges == -1).nonzero()[:, 0] - (edges == 1).nonzero()[:, 0]
    return (lengths.float() ** -power).repeat_interleave(lengths)
