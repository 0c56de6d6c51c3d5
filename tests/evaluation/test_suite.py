"""The whole evaluation of a tiny model, from recordings to tables."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from afnext.cli import app
from afnext.errors import AfnextError
from afnext.evaluation import card, held_out, suite
from afnext.evaluation.held_out import GROUPS, HeldOut
from afnext.evaluation.questions import Question
from afnext.evaluation.suite import Evaluation, evaluate
from afnext.training.synthesis import music, speech
from afnext.training.synthesis.banks import Banks

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def evaluation(tiny: Path, few: HeldOut, tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    told: list[float] = []
    root = tmp_path_factory.mktemp("no packages")
    found = evaluate(tiny, few, 2, root=root, progress=lambda what, share: told.append(share))
    assert told == sorted(told)
    assert told[-1] == 1
    return found


def test_every_target_has_its_figure(evaluation: Evaluation) -> None:
    for kind, measure in card.TARGETS:
        if kind != "presence, absent":  # two recordings may have none
            assert measure in evaluation.figures[kind], kind


def test_scores_are_plain_numbers_within_their_intervals(evaluation: Evaluation) -> None:
    scores = json.loads(json.dumps(evaluation.to_dict()))
    assert scores["parameters"] > 0
    for kind, measures in scores["figures"].items():
        for measure, figure in measures.items():
            assert figure["low"] <= figure["value"] <= figure["high"], (kind, measure)
            assert figure["questions"] >= figure["recordings"] >= 1


def test_a_second_turn_goes_on_with_the_models_own_answer() -> None:
    first = Question("k", "k", ("a",), "First?", lambda _: {})
    second = Question("k", "k", ("a",), "Second?", lambda _: {}, before=first)

    class Echo:
        def __init__(self) -> None:
            self.heard: list[tuple[str, ...]] = []

        def answers(self, requests):  # type: ignore[no-untyped-def]
            for number, request in enumerate(requests):
                self.heard.append(request.texts)
                yield number, f"answer to {request.texts[-1]}"

    echo = Echo()
    answers = suite.answer(echo, [second])  # type: ignore[arg-type]
    assert echo.heard == [("First?",), ("First?", "answer to First?", "Second?")]
    assert answers[second] == "answer to Second?"


def test_what_must_be_refused_is_not_counted_as_refused_too_much(evaluation: Evaluation) -> None:
    asked = [q for q in evaluation.answers if not q.kind.startswith("refusal")]
    figure = evaluation.figures["not refused"]["right"]
    openings = sum(q.before is not None for q in asked)  # not scored
    assert figure["questions"] == len(asked) - openings < len(evaluation.answers) - openings


def test_kinds_together_are_their_sum(evaluation: Evaluation) -> None:
    figures = evaluation.figures
    for suffix in ("", ", 12 to 30 s"):
        together = figures[f"counting (all){suffix}"]["right"]["questions"]
        assert together == sum(
            figures[f"{k}{suffix}"]["right"]["questions"] for k in ("count", "count_of")
        )


def test_tables(evaluation: Evaluation) -> None:
    text = card.tables(evaluation.to_dict() | {"limit": None})
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    measures = sum(len(m) for m in evaluation.figures.values())
    assert len(lines) == measures + 2  # and two heads
    assert {line.count("|") for line in lines} == {9}
    wer = evaluation.figures["transcribe"]["wer"]
    row = next(line for line in lines if line.startswith("| transcribe | word error rate |"))
    assert f"| {100 * wer['value']:.1f} % |" in row
    assert "at most 10.0 %" in row


def test_figures_of_a_part_of_the_recordings_say_so_and_judge_no_target(
    evaluation: Evaluation,
) -> None:
    scores = evaluation.to_dict()
    rows = {False: card.tables(scores | {"limit": None}), True: card.tables(scores)}
    assert rows[True].strip().splitlines()[-1] == (
        f"These figures are of {scores['recordings']} recordings, at most 2 of each group. Targets are of "
        "the whole set, and are not judged."
    )
    assert "at most 10.0 %" not in rows[True]
    assert "Targets" not in rows[False]
    assert list(card.missed(scores)) == []
    assert list(card.missed(scores | {"limit": None}))
    assert len(evaluation.notes) == 1  # of packages that are missing


def test_missed_targets_are_named() -> None:
    figures = {
        "transcribe": {"wer": {"value": 0.11}}, "events": {"f1": {"value": 0.9}},
        "diarize": {"f1": {"value": 0.69}},
    }  # fmt: skip
    missed = list(card.missed({"figures": figures}))
    assert [line.partition(",")[0] for line in missed] == ["transcribe", "diarize"]
    assert "11.0 %" in missed[0]


def test_what_is_saved(evaluation: Evaluation, tmp_path: Path) -> None:
    evaluation.save(tmp_path / "new")
    saved = json.loads((tmp_path / "new" / "scores.json").read_text())
    assert saved["figures"] == json.loads(json.dumps(evaluation.figures))
    lines = (tmp_path / "new" / "answers.jsonl").read_text().splitlines()
    assert len(lines) == len(evaluation.answers)
    assert (tmp_path / "new" / "scores.md").read_text().startswith("| asked |")


def test_missing_packages_are_named(evaluation: Evaluation) -> None:
    assert "gcompris-qt-data" in evaluation.notes[0]


def test_held_out_recordings_are_their_scenes(few: HeldOut, held_out_banks: Banks) -> None:
    """Each is the one that its seed and index give, whatever was made before it."""
    names = {u.speaker for _, scene in few.scenes("monologue") for u in scene.utterances}
    assert names <= set(held_out_banks.by_speaker)
    for key, scene in few.scenes("sounds"):
        samples = sum(w.valid_samples for w in few.windows(key))
        assert all(event.offset <= samples / 16_000 + 0.05 for event in scene.events)
    assert all(not scene.events for _, scene in few.scenes("silence"))
    assert not few.windows("silence/0000")[0].samples.any()


def test_a_folder_of_other_recordings_is_refused(
    few: HeldOut, banks: Banks, held_out_banks: Banks
) -> None:
    every = {"held-out": held_out_banks, "known voices": banks}
    with pytest.raises(AfnextError, match="other recordings"):
        list(held_out.write(few.folder, every, {"sounds": GROUPS["sounds"]}))


def test_missing_programs_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speech, "missing_programs", lambda: ["flite"])
    monkeypatch.setattr(music, "missing_programs", lambda: ["fluidsynth"])
    with pytest.raises(AfnextError, match=r"flite, fluidsynth.*espeak-ng"):
        suite.prepare(tmp_path)


@pytest.mark.parametrize(("json_wanted", "limited"), [(False, True), (True, True), (True, False)])
def test_the_command(
    tiny: Path, few: HeldOut, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, json_wanted: bool,
    limited: bool,
) -> None:  # fmt: skip
    """Scores go to stdout, what was missed and left out to stderr; a part of the recordings misses none."""
    monkeypatch.setattr(suite, "prepare", lambda folder, told: few)
    words = ["eval", str(tiny), "--root", str(tmp_path), "--data", str(tmp_path)]
    words += ["--limit", "2"] if limited else []
    words += ["--out", str(tmp_path / "out"), *(["--json"] if json_wanted else [])]
    run = CliRunner().invoke(app, words)
    assert run.exit_code == 0, run.output
    saved = json.loads((tmp_path / "out" / "scores.json").read_text())
    if json_wanted:
        assert json.loads(run.stdout)["figures"] == saved["figures"]
    else:
        assert run.stdout.startswith("| asked | measure |")
        assert "at most 2 of each group" in run.stdout
    assert saved["limit"] == (2 if limited else None)
    assert ("to be at most 10.0 %" in run.stderr) != limited
    assert "gcompris-qt-data" in run.stderr
