"""The batches of a step: planned, read, encoded, packed; a function of the plan, wherever they are made."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from threading import Lock

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from afnext.audio.windows import AudioWindow
from afnext.chat import ChatTemplate, Tokenizer
from afnext.errors import AfnextError, AudioError
from afnext.model import AudioBatch
from afnext.training.config import StageConfig, TrainConfig, mixture_of
from afnext.training.data.broken import Sample
from afnext.training.data.conversations import Conversation, RecordError, Turn
from afnext.training.data.entries import AUDIO_TOKENS, Place
from afnext.training.data.mixture import Draw, Mixture
from afnext.training.data.packing import NOT_LEARNT, Encoded, PackedBatch, encode, pack
from afnext.training.data.prefetch import ahead
from afnext.training.data.sources import Source
from afnext.training.data.targets import Targets, Words
from afnext.training.distributed.world import Team
from afnext.training.run.state import Cursors
from afnext.training.synthesis.scenes import Scene
from afnext.training.tasks.script import script
from afnext.training.tasks.sounds import direct

OF = "|"  # between the name of a source and the path of its recording
SCRIPT_TOKENS = 7.0  # a second of a recording as text, about
CACHE_BYTES = 100_000_000  # of encoded conversations that are kept
NOTHING = 16  # tokens of a batch that came to nothing, none of them learnt


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
    """``packed`` conversations, the ``targets`` of their recordings, what each learnt token weighs
    (float32 ``[learnt]``, in the order of ``packed.targets``), and which of the mixture's sources it is of
    (``owners``, int64 ``[learnt]``, by the order of their names). ``seconds`` of audio, each recording once.
    ``portions``: how much of a step's mean of each objective about audio is this batch's; see ``share``.
    ``shared``: in a run of several processes.
    """

    packed: PackedBatch
    targets: Targets
    weights: Tensor
    owners: Tensor
    seconds: float
    portions: Mapping[str, float] = field(default_factory=dict)
    shared: Shared | None = None

    def to(self, device: torch.device) -> Batch:
        """The same batch on ``device``."""
        shared = self.shared and replace(self.shared, own=self.shared.own.to(device))
        return Batch(
            self.packed.to(device), self.targets.to(device), self.weights.to(device),
            self.owners.to(device), self.seconds, self.portions, shared,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Plan:
    """What a step is made of: the draws of each of its batches (of one team), and the cursors after it."""

    step: int
    parts: tuple[tuple[Draw, ...], ...]
    cursors: Cursors


@dataclass(frozen=True, slots=True)
class Step:
    """The ``batches`` whose gradients a step adds up. Of what was drawn, ``broken`` could not be read and
    ``too_long`` conversations are beyond the stage's context. ``cursors``: of the draws after it.
    """

    batches: list[Batch]
    broken: list[Sample]
    too_long: int
    cursors: Cursors


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
            sources, shares, stage.audio_seconds, stage.per_recording, per_second,
            stage.per_recording_of,
        )  # fmt: skip
        self._encoded: OrderedDict[tuple[str, Place], Encoded] = OrderedDict()
        self._held = 0  # bytes of these
        self._lock = Lock()

    def plans(self, first: int = 0, cursors: Cursors | None = None) -> Iterator[Plan]:
        """What each step from ``first`` on is made of, where ``cursors`` are those before it."""
        stage, seed = self.stage, f"{self.seed}/{self.stage.name}"
        now = Cursors() if cursors is None else cursors
        for step in range(first, stage.steps):
            parts = []
            for _ in range(stage.accumulate):
                draws, now = self.mixture.draw(stage.batch_tokens, seed, now)
                parts.append(tuple(draws))
            own = parts[self.team.data_rank :: self.team.data_size]
            yield Plan(step, tuple(own), now)

    def first(self, count: int) -> list[Batch]:
        """The batches that the walk through the sources begins with.

        Raises:
            AfnextError: something in them cannot be read.
        """
        seed, now, batches = f"{self.seed}/{self.stage.name}", Cursors(), []
        for _ in range(count):
            draws, now = self.mixture.draw(self.stage.batch_tokens, seed, now)
            broken: list[Sample] = []
            batches.append(self._made(draws, broken, []))
            if broken:
                raise AfnextError(f"{broken[0].source}: {broken[0].key}: {broken[0].why}")
        return batches

    def ahead(self, first: int, cursors: Cursors, depth: int, workers: int = 0) -> Iterator[Step]:
        """Each step from ``first`` on, made while those before are in use, see :func:`prefetch.ahead`."""
        return ahead(self, self.plans(first, cursors), depth, workers)

    def __getitem__(self, plan: Plan) -> Step:
        """A step as planned, and what had to be left out for it; a function of the plan alone."""
        broken: list[Sample] = []
        too_long: list[Encoded] = []
        batches = [self._made(draws, broken, too_long) for draws in plan.parts]
        return Step(batches, broken, len(too_long), plan.cursors)

    def _made(self, draws: Sequence[Draw], broken: list[Sample], too_long: list[Encoded]) -> Batch:
        """The batch of some draws; ``broken`` and ``too_long`` gain what of them it is without."""
        context = self.stage.context_tokens
        heard: dict[str, _Heard] = {}
        encoded: list[Encoded] = []
        for draw in draws:
            found = self._conversations(draw, heard, broken)
            encoded += [item for item in found if len(item.ids) <= context]
            too_long += [item for item in found if len(item.ids) > context]
        return self._batch(encoded or [self._nothing()], heard)

    def _nothing(self) -> Encoded:
        """In the place of a batch that came to nothing: other processes have theirs, and wait for one."""
        ids = np.full(NOTHING, min(self.tokenizer.eos_ids), np.int32)
        return Encoded(ids, np.zeros(NOTHING, bool), (), "", "")

    def _conversations(
        self, draw: Draw, heard: dict[str, _Heard], broken: list[Sample]
    ) -> list[Encoded]:
        """The encoded conversations of a draw; ``heard`` gains their recordings, ``broken`` what cannot be
        used.
        """
        source, found = self.sources[draw.source], []
        for index in draw.chosen:
            place = draw.entry.records[index]
            try:
                item = self._encoded.get((draw.source, place))
                if item is None:
                    (said,) = source.conversations(draw.entry, [index])
                    told = _direct(said) if self.stage.answers == "direct" else said
                    item = self._encode(told, draw.source, heard)
                    self._keep((draw.source, place), item)
                for sound in item.sounds:
                    self._hear(sound, heard)
            except AfnextError as error:
                why = error.why if isinstance(error, RecordError | AudioError) else str(error)
                broken.append(Sample(draw.source, source.where(place), why))
            else:
                found.append(item)
        return found

    def _keep(self, key: tuple[str, Place], encoded: Encoded) -> None:
        with self._lock:
            if key in self._encoded:  # by another thread
                return
            self._encoded[key] = encoded
            self._held += encoded.nbytes
            while self._held > CACHE_BYTES:
                self._held -= self._encoded.popitem(last=False)[1].nbytes

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
            source=name,
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
        numbers = {name: number for number, name in enumerate(self.mixture.names)}
        each = torch.tensor([numbers.get(name, 0) for name in packed.sources])
        owners = each[packed.conversation[packed.targets != NOT_LEARNT]]
        return Batch(packed, targets, weights, owners, seconds)


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
