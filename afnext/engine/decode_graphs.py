"""Decode steps as CUDA graphs: one launch for hundreds, and tokens that the device chooses itself."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Items

import torch
from torch import Tensor

from afnext import ops
from afnext.model import AudioLanguageModel

from .captures import Captures
from .gpu_model import GpuModel
from .paged_attend import PlannedAttend
from .pages import PagePool
from .sampler import SETTINGS, drawn, likeliest

MOST_SEQUENCES = 64
MOST_AHEAD = 16


class DecodeGraphs:
    """Steps of one new token a sequence, in one pool: captured for 1, 2, 4, ... sequences when first needed.

    A step of fewer sequences than it was captured for computes some rows in vain. On a CPU nothing is
    captured, and the same calls run one after another.

    Args:
        net, model: the embeddings and rotation, and the layers.
        pool: where keys and values are; its tensors stay alive with the graphs.
    """

    def __init__(self, net: AudioLanguageModel, model: GpuModel, pool: PagePool) -> None:
        self._steps: dict[tuple[int, bool], _Step] = {}
        tensors = pool.keys, pool.values, [pool.scales(n) for n in range(len(pool.keys))]
        text = net.config.text
        pages = min(pool.num_pages, pool.pages_for(text.max_position_embeddings))
        device = pool.keys[0].device
        captures = Captures(device) if device.type == "cuda" else None

        def make(size: int, draws: bool) -> _Step:
            plan = ops.PagedAttentionPlan(
                tensors[0][0], text.num_attention_heads, max_requests=size, max_pages=pages
            )

            def run(ids: Tensor, positions: Tensor) -> Tensor:
                decoder = net.language_model.model
                attend = PlannedAttend(plan, *tensors, positions, decoder.inv_freq.values)
                return model.logits(model.layers(decoder.embed_tokens(ids), attend))

            return _Step(size, plan, run, device, captures, draws)

        self._make = make

    def __call__(self, ids: Items[int], starts: Items[int], table: Tensor) -> Tensor:
        """Append a token to each of N sequences.

        Args:
            ids: the tokens.
            starts: tokens that each sequence holds already.
            table: int32 ``[N, pages]``, on the host.

        Returns:
            Logits ``[N, vocab]``, good until the next call.
        """
        step = self._step(len(ids), False)
        step.put(ids, starts)
        step.run(starts, table)
        return step.logits[: len(ids)]

    def ahead(
        self, ids: Items[int], starts: Items[int], table: Tensor, rows: Items[Items[Items[float]]]
    ) -> list[list[int]]:
        """As several calls, each with the tokens that the one before said.

        The host waits once, for the last. ``table`` has pages for them all.

        Args:
            ids, starts, table: see ``__call__``.
            rows: for each sequence how its tokens are drawn, as ``Sampler.rows`` has it, as many for each.

        Returns:
            By turn, the N tokens that were said; -1 where logits are no numbers, and what follows in its
            sequence means nothing.
        """
        count = len(rows[0])
        if not 1 <= count <= MOST_AHEAD:
            raise ValueError(f"rows: must be from 1 to {MOST_AHEAD}, got {count}")
        how = torch.tensor(rows)  # [N, count, settings and number]
        step = self._step(len(ids), bool(how[..., 0].any()))
        step.put(ids, starts, how)
        for number in range(count):
            step.run([start + number for start in starts], table, number)
            step.said[number].copy_(step.chosen)
        return step.said[:count, : len(ids)].tolist()

    def _step(self, sequences: int, draws: bool) -> _Step:
        size = 1 << (sequences - 1).bit_length()
        if (size, draws) not in self._steps:
            self._steps[size, draws] = self._make(size, draws)
        return self._steps[size, draws]


class _Step:
    """A step of ``size`` sequences on memory that stays where it is.

    ``draws``: tokens are drawn, else the likeliest are taken, which is the faster.

    Attributes:
        inputs: int64 ``[2, size]``, tokens and their positions; a run leaves the next ones there.
        chosen: int64 ``[size]``, the tokens that the last run chose, or -1.
        said: int64 ``[MOST_AHEAD, size]``, room for tokens of several runs.
        logits: of the last run.
    """

    logits: Tensor

    def __init__(
        self,
        size: int,
        plan: ops.PagedAttentionPlan,
        run: Callable[[Tensor, Tensor], Tensor],
        device: torch.device,
        captures: Captures | None,
        draws: bool,
    ) -> None:
        self._plan, self._run, self._draws = plan, run, draws
        pinned = device.type == "cuda"
        self.inputs = torch.zeros(2, size, dtype=torch.int64, device=device)
        self.chosen = torch.zeros(size, dtype=torch.int64, device=device)
        self.said = torch.zeros(MOST_AHEAD, size, dtype=torch.int64, device=device)
        self._given = torch.zeros(2, size, dtype=torch.int64, pin_memory=pinned)
        # Settings, the number of this run, and those of all runs, of each sequence.
        self._how = torch.zeros(SETTINGS + 1 + MOST_AHEAD, size, device=device)
        self._given_how = torch.zeros(self._how.shape, pin_memory=pinned)
        # Captured without a batch in the plan: nothing is appended meanwhile.
        self._replay = self._forward if captures is None else captures(self._forward)

    def put(self, ids: Items[int], starts: Items[int], how: Tensor | None = None) -> None:
        """Give the next runs their tokens, and float32 ``[N, runs, SETTINGS + 1]``, how others are drawn.

        The run before is over: its results were read.
        """
        given = torch.tensor([[*ids], [*starts]], dtype=torch.int64)
        self._given[:, : len(ids)] = given
        self.inputs.copy_(self._given, non_blocking=True)
        if how is not None and self._draws:
            sequences, runs, _ = how.shape
            self._given_how[:SETTINGS, :sequences] = how[:, 0, :SETTINGS].T
            self._given_how[SETTINGS + 1 :][:runs, :sequences] = how[..., SETTINGS].T
            self._how.copy_(self._given_how, non_blocking=True)

    def run(self, starts: Items[int], table: Tensor, number: int = 0) -> None:
        """One step, begun but not awaited: the ``number``-th since ``put``."""
        ends = torch.arange(len(starts) + 1, dtype=torch.int32)
        self._plan.update(table, ends, torch.tensor(starts, dtype=torch.int32) + 1)
        if self._draws:
            self._how[SETTINGS].copy_(self._how[SETTINGS + 1 + number])
        self._replay()

    def _forward(self) -> None:
        ids, positions = self.inputs
        self.logits = self._run(ids, positions)
        if self._draws:
            self.chosen.copy_(drawn(self.logits, self._how[: SETTINGS + 1]))
        else:
            self.chosen.copy_(likeliest(self.logits))
        ids.copy_(self.chosen.clamp(min=0))  # no token has an embedding all the same
        positions += 1
