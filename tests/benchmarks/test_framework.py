"""The benchmarks' framework: its arithmetic, its JSON, its picture, and that a case needs few lines."""

from __future__ import annotations

import json
import textwrap
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from afnext.ops import runtime
from afnext.ops._compiled import compiled
from benchmarks import Case, __main__, isa, machine, peaks, roofline, rotated, run
from benchmarks.results import Failure, Peaks, Result, document, duration, result_of, table
from benchmarks.timing import Timing, alternate

PEAKS = Peaks(memory=50e9, compute={"float32": 200e9})


@pytest.fixture
def known_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring the real ones takes seconds."""
    monkeypatch.setattr(peaks, "memory", lambda: PEAKS.memory)
    monkeypatch.setattr(peaks, "compute", lambda dtype: PEAKS.compute["float32"])


def a_result(flops: float = 4e6, size: float = 1e6, name: str = "x") -> Result:
    case = Case(name, ours=int, peers={"theirs": int}, flops=flops, bytes=size)
    timings = {"ours": Timing(4e-5, 3e-5, 5e-5), "theirs": Timing(1e-4, 9e-5, 2e-4)}
    return result_of("made_up", case, timings, PEAKS)


def test_median_and_quartiles_are_numpys() -> None:
    seconds = np.random.default_rng(0).exponential(size=11).tolist()
    low, middle, high = np.quantile(seconds, [0.25, 0.5, 0.75])
    assert Timing.of(seconds) == Timing(
        *(pytest.approx(value, rel=1e-12) for value in (middle, low, high))
    )


def test_rates_and_shares() -> None:
    """1 MB at 50 GB/s takes 20 µs, 4 MFLOP at 200 GFLOP/s as long; ours took 40, theirs 100."""
    result = a_result()
    ours, theirs = result.contestants
    assert result.limit_seconds == pytest.approx(20e-6)
    assert (ours.memory_share, ours.compute_share) == pytest.approx((0.5, 0.5))
    assert (theirs.memory_share, theirs.ratio) == pytest.approx((0.2, 2.5))
    assert (ours.bytes_per_second, ours.flops_per_second) == pytest.approx((25e9, 100e9))
    assert ours.ours
    assert result.best_peer is theirs


def test_targets_are_met_or_missed() -> None:
    """Ours took 40 µs where the limit is 20, theirs 100; a peer that is not installed misses nothing."""
    targets = {"theirs": 3.0, "limit": 0.6, "absent": 9.0}
    case = Case("x", ours=int, peers={"theirs": int}, flops=4e6, bytes=lambda: 1e6, targets=targets)
    timings = {"ours": Timing(4e-5, 3e-5, 5e-5), "theirs": Timing(1e-4, 9e-5, 2e-4)}
    missed = result_of("made_up", case, timings, PEAKS)
    assert missed.bytes == 1e6
    assert missed.misses == ["x2.5 of theirs, not x3", "50% of the limit, not 60%"]
    assert "target: theirs x3, limit 60%, absent x9: MISSED: x2.5 of theirs" in table(missed)
    (plain,) = document({}, PEAKS, [missed])["results"]
    assert plain["targets"] == targets
    assert plain["misses"] == missed.misses == Result.from_dict(plain).misses
    met = result_of("made_up", replace(case, targets={"theirs": 2.5, "limit": 0.4}), timings, PEAKS)
    assert met.misses == []
    assert table(met).endswith("target: theirs x2.5, limit 40%: met")


def test_more_than_the_machine_can_do_is_measured_again_or_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = {"memory": 1e3}
    monkeypatch.setattr(peaks, "memory", lambda: found["memory"])
    monkeypatch.setattr(run, "QUICK_ROUNDS", 2)
    case = Case("x", ours=lambda: None, bytes=1e6)
    monkeypatch.setattr(peaks, "again", lambda what: None)
    (outcome,) = run.measure("made_up", [case], quick=True)
    assert isinstance(outcome, Failure)
    assert "of the memory limit: that was measured on a busy machine" in outcome.error
    monkeypatch.setattr(peaks, "again", lambda what: found.update({what: 1e18}))
    (outcome,) = run.measure("made_up", [case], quick=True)
    assert isinstance(outcome, Result)
    assert outcome.ours.memory_share < 1


def test_the_best_of_all_times_is_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = iter([3.0, 2.0, 5.0])
    monkeypatch.setattr(peaks, "_best", {})
    monkeypatch.setattr(peaks, "_read", lambda: next(rates))
    assert peaks.memory() == 3.0
    for best in (3.0, 5.0):
        peaks.again("memory")
        assert peaks.memory() == best


@pytest.mark.parametrize(
    ("flops", "size", "bound", "limit"),
    [(8e6, 1e6, "compute", 40e-6), (4e6, 2e6, "memory", 40e-6), (0.0, 0.0, "", 0.0)],
)
def test_the_nearer_roof_is_the_limit(flops: float, size: float, bound: str, limit: float) -> None:
    result = a_result(flops, size)
    assert result.bound == bound
    assert result.limit_seconds == pytest.approx(limit)
    assert ("limit" in table(result)) == bool(bound)


@pytest.mark.parametrize(
    ("seconds", "text"), [(3.456e-6, "3.46 µs"), (0.1234, "123 ms"), (12.3456, "12.3 s")]
)
def test_durations_have_three_digits(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_contestants_take_turns() -> None:
    order: list[str] = []
    alternate({n: lambda n=n: order.append(n) for n in "ab"}, rounds=3, at_least=0)  # type: ignore[misc]
    changes = sum(a != b for a, b in pairwise(order))
    assert changes >= 2 * 3


def test_rotated_inputs_exceed_the_caches() -> None:
    made: list[torch.Tensor] = []

    def make() -> torch.Tensor:
        made.append(torch.empty(1))
        return made[-1]

    size = machine.largest_cache() / 10
    following = rotated(make, size)
    assert len(made) * size >= 2 * machine.largest_cache()
    assert len({id(following()) for _ in made}) == len(made)


def test_json_holds_machine_peaks_and_results() -> None:
    content = json.loads(json.dumps(document(machine.describe(), PEAKS, [a_result()])))
    assert content["schema"] == 1
    assert {"cpu", "isa", "threads", "caches", "memory_bytes", "versions", "load"} <= content[
        "machine"
    ].keys()
    assert content["peaks"] == {
        "memory_bytes_per_second": 50e9,
        "compute_operations_per_second": {"float32": 200e9},
    }
    (result,) = content["results"]
    assert result["bound"] in ("memory", "compute")
    assert [c["name"] for c in result["contestants"]] == ["ours", "theirs"]
    assert result["contestants"][0]["seconds"] == {"median": 4e-5, "low": 3e-5, "high": 5e-5}


def test_slug_is_a_folder_name() -> None:
    here = {"cpu": "Intel(R) Xeon(R) Gold 6348 CPU @ 2.60GHz", "isa": "avx512", "threads": 8}
    assert machine.slug(here) == "intel-xeon-gold-6348-avx512-8-threads"


def test_picture_is_svg_with_every_case_inside() -> None:
    results = [a_result(flops, 1e6, f"<{flops}>") for flops in (1e5, 4e6, 1e8)]
    root = ElementTree.fromstring(roofline.svg("a & b", PEAKS, results))
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    circles = [e for e in root.iter() if e.tag.endswith("circle")]
    assert len(circles) == 3 * len(results)  # ours, theirs, the key's
    for circle in circles:
        assert 0 < float(circle.attrib["cx"]) < width
        assert 0 < float(circle.attrib["cy"]) < height
    texts = " ".join(e.text or "" for e in root.iter() if e.tag.endswith("text"))
    assert all(result.name in texts for result in results)
    assert "memory 50.0 GB/s" in texts


def test_picture_says_how_many_cases_it_leaves_out() -> None:
    results = [a_result(1e6, 1e6, f"case {i}") for i in range(roofline.KEY_LINES + 3)]
    text = roofline.svg("many", PEAKS, results)
    assert "and 3 more" in text
    assert "case 23" in text
    assert "case 24" not in text
    assert " more" not in roofline.svg("all", PEAKS, results[:-3])


def test_picture_needs_operations_and_bytes() -> None:
    with pytest.raises(ValueError, match="no case counts both"):
        roofline.svg("", PEAKS, [a_result(size=0)])


TEN_LINES = '''
"""A sum beside itself."""
import torch
from benchmarks.case import Case
def cases():
    x = torch.randn(1000)
    yield Case("[1000]", ours=x.sum, peers={"mean": x.mean}, flops=1000, bytes=4000)
    yield Case("slow", ours=x.sum, slow=True)
'''


@pytest.fixture
def newcomer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module put beside the others is a benchmark; nothing registers it."""
    (tmp_path / "newcomer.py").write_text(textwrap.dedent(TEN_LINES).lstrip())
    monkeypatch.setattr(run, "FOLDER", tmp_path)
    monkeypatch.setattr("benchmarks.__path__", [str(tmp_path)])
    monkeypatch.setattr(__main__, "SAVED", tmp_path / "results")
    return "newcomer"


def test_a_case_of_ten_lines_runs_end_to_end(
    newcomer: str, known_peaks: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {"--json": tmp_path / "r.json", "--picture": tmp_path / "r.svg"}
    options = [str(part) for pair in files.items() for part in pair]
    assert __main__.main([newcomer, "--quick", "--save", *options]) == 0
    out = capsys.readouterr().out
    assert "newcomer: A sum beside itself." in out
    assert "mean" in out
    results = json.loads(files["--json"].read_text())["results"]
    assert [r["name"] for r in results] == ["[1000]"]  # the slow one was left out
    assert ElementTree.parse(files["--picture"]).getroot() is not None
    (saved,) = (tmp_path / "results").glob("*/newcomer.json")
    assert json.loads(saved.read_text())["results"] == results


def test_a_trace_names_contestants(newcomer: str, known_peaks: None, tmp_path: Path) -> None:
    file = tmp_path / "trace.json"
    assert __main__.main([newcomer, "--quick", "--trace", str(file)]) == 0
    names = {event.get("name") for event in json.loads(file.read_text())["traceEvents"]}
    assert {"ours", "mean", "aten::mean"} <= names


OUTCOMES = '''
"""A benchmark that measures by itself."""
from benchmarks.results import Failure, Table
def outcomes(quick):
    yield Table("by_itself", "errors", {"a": {"x": 1 / 3, "y": 0.5}, "bb": {"x": 2e-9, "y": 1}}, {"y": ".1%"})
    yield Failure("by_itself", "more", "too much")
'''


def test_tables_are_shown_and_kept(
    newcomer: str, known_peaks: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "by_itself.py").write_text(OUTCOMES.lstrip())
    assert __main__.main(["by_itself", "--save"]) == 1
    captured = capsys.readouterr()
    assert [line.split() for line in captured.out.splitlines()[3:7]] == [
        ["errors"], ["x", "y"], ["a", "0.333", "50.0%"], ["bb", "2e-09", "100.0%"],
    ]  # fmt: skip
    assert "by_itself: more: too much" in captured.err
    (saved,) = (tmp_path / "results").glob("*/by_itself.json")
    (kept,) = json.loads(saved.read_text())["tables"]
    assert kept["rows"] == {"a": {"x": 0.333333, "y": 0.5}, "bb": {"x": 2e-9, "y": 1}}


@pytest.mark.slow
@pytest.mark.skipif(isa.LEVEL not in runtime.available_cpu_isas(), reason="needs AVX2")
def test_the_other_process_is_limited_and_its_outcomes_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With cases of a test's own, in a program of this name that stands for the module."""
    program = tmp_path / "stand_in"
    program.mkdir()
    (program / "isa.py").write_text(
        textwrap.dedent("""
        from benchmarks import isa, peaks
        from benchmarks.case import Case
        def wrong():
            raise AssertionError("off by 2")
        isa._cases = lambda: [
            Case("sum", ours=lambda: sum(range(10)), peers={"long sum": lambda: sum(range(9999))}),
            Case("wrong", ours=int, check=wrong),
        ]
        isa.main()
    """)
    )
    monkeypatch.setattr(isa, "__package__", "stand_in")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(isa.__file__).parents[1]}")
    result, failure = isa.outcomes(quick=True)
    assert isinstance(result, Result)
    assert result.ours.name == "ours, avx2 alone"
    assert result.contestants[1].seconds.median > 0
    assert failure == Failure("isa", "wrong", "off by 2")
    assert " sum: faster than long sum (x" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("theirs", "said"),
    [((2, 3, 4), "faster than"), ((0.5, 1.5, 3), "as fast as"), ((0.1, 0.2, 0.3), "slower than")],
)
def test_verdict_weighs_the_spread(theirs: tuple[float, ...], said: str) -> None:
    low, middle, high = theirs
    case = Case("x", ours=int, peers={"theirs": int})
    timings = {"ours": Timing(1, 0.9, 1.1), "theirs": Timing(middle, low, high)}
    result = result_of("isa", case, timings, PEAKS)
    assert isa.verdict(result).startswith(f" x: {said} theirs")


def test_json_on_stdout_is_alone_there(
    newcomer: str, known_peaks: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert __main__.main([newcomer, "--quick", "--json", "-"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["results"]
    assert "mean" in captured.err


def test_list_names_every_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {"linear", "log_mel", "threads"} <= {line.split()[0] for line in lines}
    assert all(len(line.split()) > 3 for line in lines), "a benchmark without a docstring"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["nothing"], "no benchmark named 'nothing'"), (["linear", "--picture", "x.png"], "x.svg")],
)
def test_misuse_is_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert __main__.main(arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_wrong_results_are_not_timed(known_peaks: None) -> None:
    """Only their failure is told, and the next case's turn comes."""

    def wrong() -> None:
        raise AssertionError("differs by 3,\n  more than 1")

    timed: list[int] = []
    bad = Case("bad", ours=lambda: timed.append(1), check=wrong)
    failure, result = run.measure("x", [bad, Case("good", ours=int)])
    assert str(failure) == "x: bad: differs by 3, more than 1"
    assert not timed
    assert result.name == "good"


def test_what_a_contestant_raises_is_its_cases_failure(known_peaks: None) -> None:
    failure, _ = run.measure("x", [Case("bad", ours=lambda: 1 // 0), Case("good", ours=int)])
    assert str(failure).startswith("x: bad: ZeroDivisionError: ")


FAILING = '''
"""One case of three is wrong, and then there are no more."""
from benchmarks.case import Case
def wrong():
    raise AssertionError("sums differ by 0.5, more than 1e-3")
def cases():
    yield Case("first", ours=int)
    yield Case("second", ours=int, check=wrong)
    yield Case("third", ours=int)
    raise MemoryError("no room for the fourth")
'''


def test_a_failure_is_a_line_and_the_exit_code(
    newcomer: str, known_peaks: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other cases, and the other benchmarks, are measured and kept."""
    (tmp_path / "failing.py").write_text(FAILING.lstrip())
    file = tmp_path / "r.json"
    arguments = ["failing", newcomer, "--quick", "--save", "--json", str(file)]
    assert __main__.main(arguments, prog="bench") == 1
    assert capsys.readouterr().err.splitlines() == [
        "bench: failing: second: sums differ by 0.5, more than 1e-3",
        "bench: failing: MemoryError: no room for the fourth",
    ]
    content = json.loads(file.read_text())
    assert [r["name"] for r in content["results"]] == ["first", "third", "[1000]"]
    assert [f["name"] for f in content["failures"]] == ["second", ""]
    assert content["complete"]
    (saved,) = (tmp_path / "results").glob("*/failing.json")
    assert [r["name"] for r in json.loads(saved.read_text())["results"]] == ["first", "third"]


INTERRUPTED = '''
"""The second of three cases is interrupted."""
import pathlib, shutil
from benchmarks.case import Case
HERE = pathlib.Path(__file__).parent
def interrupt():
    shutil.copy(HERE / "r.json", HERE / "seen.json")
    shutil.copytree(HERE / "results", HERE / "seen")
    raise KeyboardInterrupt
def cases():
    yield Case("first", ours=int)
    yield Case("second", ours=int, check=interrupt)
    yield Case("third", ours=int)
'''


def test_an_interrupted_run_keeps_what_it_measured(
    newcomer: str, known_peaks: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The files are there while the second case runs, so that they outlive any kind of end."""
    (tmp_path / "interrupted.py").write_text(INTERRUPTED.lstrip())
    arguments = ["interrupted", newcomer, "--quick", "--save", "--json", str(tmp_path / "r.json")]
    assert __main__.main(arguments, prog="bench") == 130
    assert capsys.readouterr().err == "bench: interrupted; results so far: 1\n"
    for pattern in ("r.json", "seen.json", "results/*/interrupted.json", "seen/*/interrupted.json"):
        (file,) = tmp_path.glob(pattern)
        content = json.loads(file.read_text())
        assert [r["name"] for r in content["results"]] == ["first"], pattern
        assert not content["complete"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_peak_arithmetic_counts_operations(dtype: str) -> None:
    """Twice the steps are twice the operations; none at all are none."""
    count = compiled.peak_arithmetic
    operands = torch.randn(64)
    one, two = (count(dtype, operands, steps) for steps in (100, 200))
    assert one > 0
    assert two == 2 * one
    assert count(dtype, operands, 0) == 0


def test_peak_read_sees_every_byte() -> None:
    """Any change, also in a tail that fills no register, changes what it returns."""
    data = np.random.default_rng(0).integers(0, 256, 100_003, dtype=np.uint8)
    seen = compiled.peak_read(data)
    for index in (0, 4096, 99_999, 100_002):
        data[index] ^= 1
        assert compiled.peak_read(data) != seen
        data[index] ^= 1
    assert compiled.peak_read(data) == seen


def test_profiler_names_the_ops() -> None:
    """Who profiles a model finds our ops by name."""
    from afnext import ops

    x = torch.randn(8, 8)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        ops.silu_mul(x, x)
        with torch.inference_mode():
            ops.rms_norm(x, x[0].contiguous(), 1e-6)
    names = {event.key for event in profile.key_averages()}
    assert {"afnext::silu_mul", "afnext::rms_norm"} <= names
