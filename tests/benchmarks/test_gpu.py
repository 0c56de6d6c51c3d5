"""The GPU's benchmark, rehearsed: every row's code runs here on the CPU, where its figures mean nothing."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from afnext.hub import EMBEDDED
from afnext.model import ModelConfig
from benchmarks.__main__ import main
from benchmarks.gpu import checks, supervision
from benchmarks.gpu.__main__ import slug
from benchmarks.gpu.rows import ROWS
from benchmarks.gpu.step_rows import GEOMETRIES
from tests.parallel import cases

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


def test_rows_have_titles_of_their_own() -> None:
    assert len({row.title for row in ROWS}) == len(ROWS)


BARE_MACHINE = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {missing}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Missing())
import benchmarks.gpu.rows, benchmarks.gpu.correctness, benchmarks.gpu.__main__, tests.cuda.harness
for _ in tests.cuda.harness.all_cases():
    pass
"""


def test_numpy_and_torch_are_enough() -> None:
    """A rented machine has these and little else, and no network."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    names = {re.match(r"[\w-]+", line)[0].replace("-", "_") for line in asked}  # type: ignore[index]
    missing = names - {"torch", "numpy"} | {"yaml"}
    script = BARE_MACHINE.format(missing=sorted(missing))
    run = [sys.executable, "-c", script]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_nanos_step_has_its_sizes() -> None:
    text = ModelConfig.from_folder(EMBEDDED["nano"]).text
    g = GEOMETRIES["nano"]
    assert (g.layers, g.hidden, g.heads, g.kv_heads, g.dim, g.ffn, g.vocabulary) == (
        text.num_hidden_layers, text.hidden_size, text.num_attention_heads, text.num_key_value_heads,
        text.head_dim, text.intermediate_size, text.vocab_size,
    )  # fmt: skip


def test_every_row_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "gpu.json"
    assert main(["gpu", "--rehearse", "--json", str(file)]) == 0
    content = json.loads(file.read_text())
    assert content["complete"]
    assert content["failures"] == []
    assert file.with_suffix(".svg").read_text().startswith("<svg")
    assert len(content["results"]) == len(ROWS)
    assert all(len(result["contestants"]) > 1 for result in content["results"])
    assert "figures mean nothing" in capsys.readouterr().out


def test_the_check_of_ranks_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """It sees ranks that are wrong."""
    monkeypatch.setattr(checks, "CUDA", torch.device("cpu"))
    checks.ranks_that_share_a_sequence_are_one_process()
    local = cases.local
    monkeypatch.setattr(cases, "local", lambda case: [x + 0.1 for x in local(case)])
    with pytest.raises(AssertionError):
        checks.ranks_that_share_a_sequence_are_one_process()


def test_out_of_time_keeps_what_there_is(tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    assert main(["gpu", "--rehearse", "--budget", "0", "--json", str(file)]) == 0
    assert not json.loads(file.read_text())["complete"]


def test_a_failing_row_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(job: supervision.Job, deadline: float) -> Iterator[tuple[str, supervision.Answer]]:
        for title, answer in supervision_run(job, deadline):
            planted = title.startswith("silu_mul")
            yield title, supervision.Answer(error="planted") if planted else answer

    supervision_run = supervision.run
    monkeypatch.setattr(supervision, "run", run)
    file = tmp_path / "gpu.json"
    arguments = ["--rehearse", "--only", "silu_mul|^rotate", "--json", str(file)]
    assert main(["gpu", *arguments]) == 1
    content = json.loads(file.read_text())
    assert [failure["error"] for failure in content["failures"]] == ["planted"]
    assert [result["benchmark"] for result in content["results"]] == ["rotate"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_no_gpu_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gpu"]) == 2
    assert "torch sees no GPU" in capsys.readouterr().err


def test_a_folder_is_named_after_the_gpu() -> None:
    assert slug({"name": "NVIDIA H100 80GB HBM3"}) == "nvidia-h100-80gb-hbm3"
