"""What the tool for mutants takes for one, and its list of those that are harmless."""

from __future__ import annotations

from pathlib import Path

from tests.cuda.harness import OPS
from tests.cuda.mutants import harmless, mutants_of, sources

KERNEL = """
__global__ void twice(float* x, int n) {
  arch::griddepcontrol_wait();
  if (n > 0) {
    __syncthreads();
  }
  if (n > 0) __syncthreads();
}
"""


def test_waits_barriers_and_conditions_are_mutants(tmp_path: Path) -> None:
    file = tmp_path / "twice.cu"
    file.write_text(KERNEL)
    found = [(m.line, m.text, m.synchronises, m.nth) for m in mutants_of(file)]
    assert found == [
        (3, "arch::griddepcontrol_wait();", True, 1),
        (4, "n > 0", False, 1),
        (5, "__syncthreads();", True, 1),
        (7, "__syncthreads();", True, 2),
        (7, "n > 0", False, 2),
    ]


def test_the_list_of_the_harmless_is_up_to_date(tmp_path: Path) -> None:
    """Each has a reason and is still there: an entry whose line was changed says nothing any more."""
    there = {mutant.name for op in OPS for file in sources(op) for mutant in mutants_of(file)}
    listed = harmless()
    assert listed.keys() <= there
    assert all(len(reason) > 20 for reason in listed.values())
    file = tmp_path / "list.toml"
    file.write_text('[[harmless]]\nfile = "a.h"\ntext = "b"\nnth = 2\nreason = "why"\n')
    assert harmless(file) == {("a.h", "b", 2): "why"}
