"""The GPU's benchmark, rehearsed: every row's code runs here on the CPU, where its figures mean nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from afnext import ops
from benchmarks.__main__ import main
from benchmarks.gpu import attention_rows, linear_rows, small_rows, step_rows
from benchmarks.gpu.__main__ import slug

ROWS = [*attention_rows.ROWS, *step_rows.ROWS, *small_rows.ROWS, *linear_rows.ROWS]


def test_every_row_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "gpu.json"
    assert main(["gpu", "--rehearse", "--json", str(file)]) == 0
    content = json.loads(file.read_text())
    assert content["complete"]
    assert content["failures"] == []
    measured = len(content["results"])
    without_plan = 0 if hasattr(ops, "PagedAttentionPlan") else len(step_rows.ROWS)
    assert measured == len(ROWS) - without_plan
    assert all(len(result["contestants"]) > 1 for result in content["results"])
    assert "figures mean nothing" in capsys.readouterr().out


def test_out_of_time_keeps_what_there_is(tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    assert main(["gpu", "--rehearse", "--budget", "0", "--json", str(file)]) == 0
    assert not json.loads(file.read_text())["complete"]


def test_a_failing_row_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*args: object, **kwargs: object) -> torch.Tensor:
        raise RuntimeError("planted")

    monkeypatch.setattr(ops, "silu_mul", broken)
    file = tmp_path / "gpu.json"
    arguments = ["--rehearse", "--only", "silu_mul|^rotate", "--json", str(file)]
    assert main(["gpu", *arguments]) == 1
    content = json.loads(file.read_text())
    assert [failure["error"] for failure in content["failures"]] == ["RuntimeError: planted"]
    assert len(content["results"]) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_no_gpu_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gpu"]) == 2
    assert "torch sees no GPU" in capsys.readouterr().err


def test_a_folder_is_named_after_the_gpu() -> None:
    assert slug({"name": "NVIDIA H100 80GB HBM3"}) == "nvidia-h100-80gb-hbm3"
