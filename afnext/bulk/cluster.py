"""The recordings of a folder answered by the processes of a Ray cluster, through Ray Data.

Ray hands out the work, restarts what dies and brings the answers back; who called writes them down, so
that a run over a cluster is gone on with as any other is, with or without one.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from threading import Event
from typing import Any

from afnext.errors import AfnextError

# One recording a block, so that each answer comes as it is ready; but Ray's own cost grows.
_MOST_BLOCKS = 10_000


def on_ray(
    prepare: Callable[[], Callable[[Path, Event], Mapping[str, Any]]],
    explain: Callable[[Exception, Path], str],
    folder: Path,
    files: Sequence[str],
    workers: int,
    gpus: float = 0,
) -> Generator[tuple[str, Mapping[str, Any]]]:
    """Yield each file with its answer, or with ``{"error": ..}``, as they are ready.

    The cluster is the one of ``RAY_ADDRESS``; without it, one is started on this machine and stopped in the
    end. Its machines need afnext and see ``folder`` under the same path.

    Args:
        prepare: as of ``answer_folder``; sent to each worker and called there once.
        explain: what to write of an exception.
        workers: processes.
        gpus: of each.

    Raises:
        AfnextError: Ray is not installed, or the work failed as a whole.
    """
    try:
        import ray
        import ray.data
    except ImportError:
        raise AfnextError("a Ray cluster needs ray: pip install 'afnext[ray]'") from None
    folder = folder.absolute()

    class Worker:
        def __init__(self) -> None:
            self.answer = prepare()

        def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
            path = folder / row["file"]
            try:
                answer = self.answer(path, Event())
            except Exception as error:
                answer = {"error": explain(error, path)}
            # As text: columns of a table would have to be the same for every answer.
            return {"file": row["file"], "answer": json.dumps(answer)}

    ours = not ray.is_initialized()
    try:
        if ours:
            # What workers print stays in Ray's own logs; what they cannot do comes back as an answer.
            ray.init(logging_level=logging.ERROR, log_to_driver=False)
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        ray.data.DataContext.get_current().enable_progress_bars = False
        todo = ray.data.from_items(
            [{"file": file} for file in files], override_num_blocks=min(len(files), _MOST_BLOCKS)
        )
        pool = ray.data.ActorPoolStrategy(size=min(workers, len(files)))
        worker: Any = Worker  # Ray takes classes too, which its types leave out
        for row in todo.map(worker, compute=pool, num_gpus=gpus).iter_rows():
            yield row["file"], json.loads(row["answer"])
    except (ray.exceptions.RayError, ConnectionError) as error:
        cause = getattr(error, "cause", None) or error
        raise AfnextError(f"Ray: {(str(cause).strip().splitlines() or [''])[-1]}") from None
    finally:
        if ours:
            ray.shutdown()
