"""The command: stdout is the answer, errors are one line, exit codes, JSON."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch

from afnext import cli, report
from afnext.convert import convert
from tests.command import afnext, installed

pytestmark = pytest.mark.slow  # every test starts processes

SPOKEN = Path(__file__).parents[1] / "examples" / "scene.flac"


def test_ask_prints_the_answer_alone(scene_file: Path) -> None:
    run = afnext("ask", scene_file, "What sounds do you hear, and when?")
    assert run.returncode == 0, run.stderr
    assert "<t>" in run.stdout
    assert run.stdout.count("\n") == 1
    assert run.stderr == ""


def test_json_is_one_object(scene_file: Path) -> None:
    run = afnext("ask", scene_file, "What sounds do you hear, and when?", "--json")
    reply = json.loads(run.stdout)
    assert {"text", "thinking", "usage", "timings", "segments"} <= reply.keys()


def test_options_of_generating_and_of_memory(scene_file: Path) -> None:
    options = {
        "-n": 2, "--temperature": 1, "--top-p": 0.9, "--top-k": 50, "--min-p": 0.01, "--seed": 1,
        "--repetition-penalty": 1.1, "--stop": "zebra", "--timeout": 60, "--logprobs": 1,
        "--speculate": 2, "--cache-bytes": "64M",
    }  # fmt: skip
    run = afnext("ask", scene_file, "What?", "--json", *(w for o in options.items() for w in o))
    assert run.returncode == 0, run.stderr
    reply = json.loads(run.stdout)
    assert len(reply["others"]) == 1
    assert len(reply["logprobs"]) == reply["usage"]["completion_tokens"]


@pytest.mark.parametrize("verb", ["transcribe", "caption"])
def test_other_verbs_answer(verb: str, scene_file: Path) -> None:
    run = afnext(verb, scene_file, "--max-tokens", 64)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip()


def test_subtitles() -> None:
    run = afnext("transcribe", SPOKEN, "--task", "timestamps", "--format", "srt")
    assert run.returncode == 0, run.stderr
    assert " --> " in run.stdout
    said = [line for line in run.stdout.splitlines() if re.search("[a-z]", line)]
    assert all(re.match(r"[A-Z].* .*[.?!]$", line) for line in said), said  # sentences, not labels


def test_answers_bound_to_a_choice_a_schema_or_an_expression(
    scene_file: Path, tmp_path: Path
) -> None:
    pytest.importorskip("llguidance")
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "array", "items": {"enum": ["rain", "siren"]}, "maxItems": 2}')
    question = "What sounds do you hear?"
    assert afnext("ask", scene_file, question, "--choice", "rain,siren").stdout in (
        "rain\n",
        "siren\n",
    )
    one = afnext("ask", scene_file, question, "--choice", "rain, or", "--choice", "a siren, or")
    assert one.stdout in ("rain, or\n", "a siren, or\n")
    answer = json.loads(afnext("ask", scene_file, question, "--json-schema", schema).stdout)
    assert set(answer) <= {"rain", "siren"}
    bound = afnext("ask", scene_file, question, "--regex", "[0-9]{3}")
    assert re.fullmatch("[0-9]{3}\n", bound.stdout), bound.stderr


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        (b"{nope", "is not JSON"),
        (b"[1]", "must be an object, got [1]"),
        (b'{"type": "objectx"}', "Invalid type: objectx"),
        (b"\xff\xfe", "'utf-8' codec can't decode"),
    ],
)
def test_a_schema_that_is_none_is_told_with_its_file(
    schema: bytes, said: str, scene_file: Path, tmp_path: Path
) -> None:
    pytest.importorskip("llguidance")
    file = tmp_path / "schema.json"
    file.write_bytes(schema)
    run = afnext("ask", scene_file, "What?", "--json-schema", file)
    assert run.returncode == 1
    assert run.stderr.startswith(f"afnext: --json-schema: {file}: {said}")
    assert run.stderr.count("\n") == 1


def test_chat_from_a_pipe(scene_file: Path) -> None:
    talk = "What sounds do you hear?\n/files\nHow many are there?\n/reset\n/nonsense\n/quit\n"
    run = afnext("chat", scene_file, stdin=talk)
    assert run.returncode == 0, run.stderr
    assert len(run.stdout.strip().splitlines()) == 2
    assert "scene.wav" in run.stderr
    assert "afnext: no command /nonsense" in run.stderr


def test_what_is_wrong_in_a_chat_is_told_as_by_other_verbs(
    scene_file: Path, tmp_path: Path
) -> None:
    """And names no option that the verb does not have."""
    cut = tmp_path / "cut.wav"
    cut.write_bytes(scene_file.read_bytes()[: scene_file.stat().st_size // 2])
    run = afnext("chat", cut, "missing.wav", stdin="What sounds do you hear?\n")
    assert (run.returncode, run.stdout) == (1, "")
    missing, broken, left = run.stderr.splitlines()
    assert missing == "afnext: missing.wav: no such file"
    assert broken.startswith(f"afnext: {cut}: damaged or cut short: ")
    assert "--" not in broken
    assert left == f"afnext: left out: {cut}"


def test_a_chat_goes_on_without_what_cannot_be_heard(scene_file: Path, tmp_path: Path) -> None:
    """Told when it is added, where its header says so, or with the question; the next one is answered."""
    (tmp_path / "text.wav").write_bytes(b"RIFF but no sound")
    cut = tmp_path / "cut.wav"
    cut.write_bytes(scene_file.read_bytes()[: scene_file.stat().st_size // 2])
    shutil.copy(scene_file, tmp_path / "scene.wav")
    question = "What sounds do you hear?"
    talk = [f"/audio {tmp_path}/text.wav {cut}", question, "/audio ~/scene.wav", question]
    run = afnext("chat", scene_file, stdin="\n".join(talk), HOME=str(tmp_path))
    complaints = run.stderr.splitlines()
    assert len(complaints) == 3, run.stderr
    assert complaints[0].startswith(f"afnext: {tmp_path}/text.wav: ")
    assert complaints[2] == f"afnext: left out: {scene_file}, {cut}"
    assert len(run.stdout.splitlines()) == 1


def test_out_of_memory_is_one_line_that_says_what_takes_less(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], scene_file: Path
) -> None:
    def load(**options: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nmore")

    monkeypatch.setattr("afnext.assistant.load_model", load)
    monkeypatch.setattr(sys, "argv", ["afnext", "caption", str(scene_file)])
    with pytest.raises(SystemExit, match="1"):
        cli.main()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("afnext: CUDA out of memory. Tried to allocate 2.00 GiB")
    assert "--quantization int8" in line


def test_info_describes_the_release() -> None:
    facts = json.loads(afnext("info", "--geometry", "7b", "--json").stdout)
    assert facts["parameters"] == 8_267_215_360
    assert facts["tensors"] == 830
    assert facts["kv_bytes_per_token"]["bfloat16"] == 57_344
    assert facts["audio_tokens_per_minute"] == 1500
    here = json.loads(afnext("info", "--json").stdout)
    assert {"afnext", "cpu_isa", "threads", "cuda_kernels"} <= here.keys()
    assert "parameters" in afnext("info", "--model", "nano").stdout


def test_info_tells_what_a_quantised_folder_holds(tmp_path: Path) -> None:
    small = convert("nano", tmp_path / "small", quantization="int8")
    facts = report.model(small)
    assert facts["stored_formats"] == ["int8"]
    assert facts["stored_bytes"] == (small / "model.safetensors").stat().st_size
    assert "stored formats" in report.as_text(facts)
    assert "stored_formats" not in report.model("nano")


def test_a_recipe_is_planned_before_it_runs() -> None:
    """Each stage of nano's."""
    plan = json.loads(afnext("plan", "nano", "--json", "--processes", 2, "--ring", 2).stdout)
    assert plan["processes"] == 2
    (last,) = (stage for stage in plan["stages"] if stage["name"] == "midtrain-2")
    assert last["mesh"] == {"groups": 1, "ring": 2, "ulysses": 1}
    assert sum(last["memory_bytes"].values()) == last["memory_bytes_total"]


def test_a_plan_says_which_sources_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe, there = tmp_path / "mine.yaml", tmp_path / "mine.json"
    recipe.write_text(
        "{name: x, init: nano, sources: {mine: {path: mine.json}}, stages: [{name: a, steps: 1, "
        "train: {net: 1e-3}, mixture: {mine: 1}}]}"
    )
    run = afnext("plan", recipe)
    said = f"afnext: sources: mine: nothing is at {there} yet\n"
    assert (run.returncode, run.stderr) == (0, said)
    there.touch()
    assert afnext("plan", recipe).stderr == ""


def test_isa_cap_is_honoured() -> None:
    assert (
        json.loads(installed("info", "--json", AFNEXT_CPU_ISA="baseline").stdout)["cpu_isa"]
        == "baseline"
    )
    wrong = installed("info", AFNEXT_CPU_ISA="mmx")
    assert wrong.returncode == 1
    assert "AFNEXT_CPU_ISA" in wrong.stderr


def test_info_tells_the_threads_of_the_kernels_and_of_torch() -> None:
    """Each goes by a variable of its own."""
    run = installed("info", "--json", AFNEXT_NUM_THREADS="3", OMP_NUM_THREADS="1")
    facts = json.loads(run.stdout)
    assert (facts["threads"], facts["torch_threads"]) == (3, 1)


def test_convert_writes_a_folder_that_loads(tmp_path: Path, scene_file: Path) -> None:
    out = tmp_path / "small"
    assert afnext("convert", "nano", out, "--dtype", "bfloat16").returncode == 0
    run = afnext("ask", scene_file, "What sounds do you hear, and when?", "--model", out)
    assert run.returncode == 0, run.stderr
    again = afnext("convert", "nano", out)
    assert again.returncode == 1
    assert "exists" in again.stderr


def test_convert_to_fewer_bits_by_recordings(tmp_path: Path, scene_file: Path) -> None:
    out = tmp_path / "int4"
    run = afnext("convert", "nano", out, "--quantization", "int4", "--calibrate", scene_file.parent)
    assert (run.returncode, run.stdout, run.stderr) == (0, f"{out}\n", "")
    assert "<t>" in afnext("ask", scene_file, "What sounds, and when?", "-m", out).stdout
    wrong = afnext("convert", "nano", tmp_path / "x", "--calibrate", scene_file)
    assert wrong.returncode == 1
    assert "int4" in wrong.stderr


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["ask", "missing.wav", "What?"], 1, "missing.wav"),
        (["ask", __file__, "What?"], 1, "audio"),
        (["ask"], 2, "Missing argument"),
        (["ask", "a.wav"], 2, "then the question"),
        (["ask", "a.wav", " "], 2, "empty"),
        (["ask", "a.wav", "Is", "there", "a", "bell"], 1, "in quotes"),
        (["chat", "missing.wav"], 1, "missing.wav"),
        (["ask", "a.wav", "b", "--temperature", "hot"], 2, "temperature"),
        (["ask", __file__, "b", "--model", "no/such/folder"], 1, "no/such/folder"),
        (["ask", __file__, "b", "--model", "someone/some-model"], 1, "HF_HUB_OFFLINE"),
        (["ask", __file__, "b", "--variant", "poet"], 1, "poet"),
        (["pull", "not an id"], 1, "hub id"),
        (["ask", __file__, "b", "--json-schema", "no.json"], 1, "no.json"),
        (
            ["ask", __file__, "b", "--regex", "(", "--choice", "a"],
            1,
            "regex: cannot go with choice",
        ),
        (["info", "--geometry", "900b"], 1, "900b"),
        (["info", "--geometry", "7b", "--verify", "nano"], 2, "give one of"),
        (["train", "no-such-recipe", "--out", "x"], 1, "no-such-recipe"),
        (["train", "nano", "--out", __file__], 2, "--out"),
        (["plan", "7b", "--processes", "3"], 1, "cannot be shared out to 3 groups"),
        (["plan", "nano", "--device-memory", "-1"], 2, "--device-memory"),
        (["plan", "nano", "--peak", "0"], 2, "--peak"),
        (["frobnicate"], 2, "frobnicate"),
    ],
)
def test_errors_are_one_line(args: list[str], code: int, said: str, tmp_path: Path) -> None:
    run = afnext(*args, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    assert run.returncode == code
    assert said in run.stderr
    assert "Traceback" not in run.stderr
    assert run.stdout == ""
    if code == 1:
        assert run.stderr.count("\n") == 1
