"""The recordings of a folder answered by the processes of a Ray cluster, through Ray Data.

Ray hands out the work, restarts what dies and brings the answers back; who called writes them down, so
that a run over a cluster is gone on with as any other is, with or without one.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from afnext.errors import AfnextError

from .fault import WorkerError, explain, is_its_own
from .pool import Stop

if TYPE_CHECKING:
    from .folder import Prepare

# One recording a block, so that each answer comes as it is ready; but Ray's own cost grows.
_MOST_BLOCKS = 10_000


def on_ray(
    prepare: Prepare,
    folder: Path,
    files: Sequence[str],
    workers: int,
    concurrency: int = 1,
    device: str | None = None,
) -> Generator[tuple[str, Mapping[str, Any] | BaseException]]:
    """Yield each file with its answer, with ``{"error": ..}`` or with a ``WorkerError``, as they are ready.

    The cluster is the one of ``RAY_ADDRESS``; without it, one is started on this machine and stopped in the
    end. Its machines need afnext and see ``folder`` under the same path. They share out their cores among
    the workers.

    Args:
        prepare: as of ``answer_folder``; sent to each worker and called there once, with ``device``.
        workers: processes.
        concurrency: threads that answer in each.
        device: "cuda" gives each worker a GPU of its own, others none; by default "cuda" where the cluster
            has a GPU, else "cpu".

    Raises:
        AfnextError: Ray is not installed, there is no GPU for "cuda", or the work failed as a whole.
    """
    try:
        import ray
        import ray.data
    except ImportError:
        raise AfnextError("a Ray cluster needs ray: pip install 'afnext[ray]'") from None
    folder = folder.absolute()

    class Worker:
        def __init__(self, device: str, threads: int) -> None:
            from afnext.ops import runtime

            runtime.set_num_threads(threads)  # else each worker's pool has all cores of the machine
            self.answer = prepare(device)

        def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
            path = folder / row["file"]
            try:
                answer = self.answer(path, Stop())
            except Exception as error:
                line = explain(error, path)
                if not is_its_own(error, folder):
                    return {"file": row["file"], "answer": "", "failed": line}
                answer = {"error": line}
            # As text: columns of a table would have to be the same for every answer.
            return {"file": row["file"], "answer": json.dumps(answer), "failed": ""}

    ours = not ray.is_initialized()
    try:
        if ours:
            # What workers print stays in Ray's own logs; what they cannot do comes back as an answer.
            ray.init(logging_level=logging.ERROR, log_to_driver=False)
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        ray.data.DataContext.get_current().enable_progress_bars = False
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        with_gpu = [m for m in machines if m.get("GPU", 0) >= 1]
        device = device or ("cuda" if with_gpu else "cpu")
        if device == "cuda" and not with_gpu:
            raise AfnextError("device: no machine of the Ray cluster has a GPU")
        workers = min(workers, len(files))
        used = with_gpu if device == "cuda" else machines
        cores = shared_out([int(m.get("CPU", 0)) for m in used], workers)
        todo = ray.data.from_items(
            [{"file": file} for file in files], override_num_blocks=min(len(files), _MOST_BLOCKS)
        )
        pool = ray.data.ActorPoolStrategy(
            size=workers,
            max_tasks_in_flight_per_actor=2 * concurrency,
            enable_true_multi_threading=True,
        )
        worker: Any = Worker  # Ray takes classes too, which its types leave out
        # Ray advises against asking for both.
        needed: dict[str, Any] = {"num_gpus": 1} if device == "cuda" else {"num_cpus": cores}
        answered = todo.map(
            worker, compute=pool, fn_constructor_args=[device, cores], max_concurrency=concurrency, **needed
        )  # fmt: skip
        for row in answered.iter_rows():
            failed = WorkerError(row["failed"])
            yield row["file"], failed if row["failed"] else json.loads(row["answer"])
    except (ray.exceptions.RayError, ConnectionError) as error:
        cause = getattr(error, "cause", None) or error
        raise AfnextError(f"Ray: {(str(cause).strip().splitlines() or [''])[-1]}") from None
    finally:
        if ours:
            ray.shutdown()


def shared_out(cores: Iterable[int], workers: int) -> int:
    """Cores that each worker may have where machines have so many and all must find a place; 1 at least."""
    cores = list(cores)
    for share in range(max(1, sum(cores) // workers), 1, -1):
        if sum(machine // share for machine in cores) >= workers:
            return share
    return 1
