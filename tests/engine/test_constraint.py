"""Output bound to a grammar: whatever the model would say, the answer is what was asked for."""

from __future__ import annotations

import json
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import afnext
from afnext.chat import Tokenizer
from afnext.engine import GenerationParams
from afnext.engine.constraint import Constraints
from afnext.engine.sampler import Sampler
from afnext.hub import find_model

pytest.importorskip("llguidance")
jsonschema = pytest.importorskip("jsonschema")

VOCABULARY = 1132
SCENE = {
    "type": "object",
    "properties": {
        "sounds": {"type": "array", "items": {"enum": ["dog", "siren", "rain"]}, "maxItems": 3},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "said": {"type": ["string", "null"], "maxLength": 12},
        "loud": {"type": "boolean"},
    },
    "required": ["sounds", "count", "said", "loud"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_folder(find_model("nano"))


@pytest.fixture(scope="module")
def constraints(tokenizer: Tokenizer) -> Constraints:
    return Constraints(tokenizer, VOCABULARY)


@pytest.fixture(scope="module")
def nano() -> afnext.Assistant:
    return afnext.load("nano")


def written(
    constraints: Constraints, tokenizer: Tokenizer, seed: int, options: dict[str, Any]
) -> str:
    """What comes of logits that mean nothing."""
    params = GenerationParams(**options)
    assert params.grammar is not None
    params = GenerationParams(**options, constraint=constraints.compile(*params.grammar))
    sampler = Sampler(params, [1, 2], VOCABULARY)
    noise, tokens = torch.Generator().manual_seed(seed), []
    for _ in range(600):
        logits = torch.randn(VOCABULARY, generator=noise) * 8
        logits[torch.rand(VOCABULARY, generator=noise) < 0.3] = -torch.inf
        token = sampler(logits)
        if token in tokenizer.eos_ids:
            break
        tokens.append(token)
    else:
        raise AssertionError("an answer of bounded length goes on")
    return tokenizer.decode(tokens)


HOW = [
    {},
    {"temperature": 1.5, "top_p": 0.9, "seed": 1},
    {"temperature": 0.7, "top_k": 3, "min_p": 0.1, "seed": 2, "repetition_penalty": 1.3},
]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("seed", range(4))
def test_noise_fulfils_a_schema(
    constraints: Constraints, tokenizer: Tokenizer, seed: int, how: dict[str, Any]
) -> None:
    text = written(constraints, tokenizer, seed, {"json_schema": SCENE, **how})
    answer = json.loads(text)
    jsonschema.validate(answer, SCENE)
    assert json.dumps(answer, ensure_ascii=False) == text or "\\" in text  # no idle white space


LEAVES = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.builds(lambda n: {"type": "string", "maxLength": n}, st.integers(0, 5)),
    st.builds(lambda a, b: {"type": "integer", "minimum": a, "maximum": a + b},
              st.integers(-50, 50), st.integers(0, 200)),
    st.builds(lambda values: {"enum": values},
              st.lists(st.one_of(st.text(max_size=4), st.integers(-9, 9)), min_size=1, max_size=3)),
)  # fmt: skip
NAMES = st.text(alphabet='abé"\\ 😀', min_size=1, max_size=3)


def an_object(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": fields,
        "required": list(fields),
        "additionalProperties": False,
    }


SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds(an_object, st.dictionaries(NAMES, inner, max_size=3)),
        st.builds(
            lambda item, n: {"type": "array", "items": item, "maxItems": n},
            inner,
            st.integers(0, 3),
        ),
        st.builds(lambda options: {"anyOf": options}, st.lists(inner, min_size=1, max_size=2)),
    ),
    max_leaves=5,
)


@settings(max_examples=60, deadline=None)
@given(schema=SCHEMAS, seed=st.integers(0, 2**32), how=st.sampled_from(HOW))
def test_noise_fulfils_any_schema(
    constraints: Constraints, tokenizer: Tokenizer, schema: dict, seed: int, how: dict
) -> None:
    text = written(constraints, tokenizer, seed, {"json_schema": schema, **how})
    jsonschema.validate(json.loads(text), schema)


@settings(max_examples=60, deadline=None)
@given(
    choice=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1,
                            max_size=8), min_size=1, max_size=4),
    seed=st.integers(0, 2**32),
)  # fmt: skip
def test_noise_makes_a_choice(
    constraints: Constraints, tokenizer: Tokenizer, choice: list[str], seed: int
) -> None:
    assert written(constraints, tokenizer, seed, {"choice": choice}) in choice


@pytest.mark.parametrize(
    "regex",
    [
        r"\d{1,3}",
        r"(yes|no)( and (yes|no)){0,3}",
        r"[a-z]{2,9}/\w{1,3}",
        "[äöü]{1,4}\n",
        r"\$\d\.\d{2}",
    ],
)
def test_noise_matches_an_expression(
    constraints: Constraints, tokenizer: Tokenizer, regex: str
) -> None:
    texts = {written(constraints, tokenizer, seed, {"regex": regex}) for seed in range(8)}
    assert all(re.fullmatch(regex, text) for text in texts), texts
    assert len(texts) > 1


def test_a_state_says_what_may_come(constraints: Constraints, tokenizer: Tokenizer) -> None:
    constraint = constraints.compile("choice", ("aa", "ab"))
    assert constraints.compile("choice", ("aa", "ab")) is constraint
    state, other = constraint.start(), constraint.start()
    a, b = tokenizer.token_id("a"), tokenizer.token_id("b")
    end = torch.zeros(VOCABULARY, dtype=torch.bool)
    end[sorted(tokenizer.eos_ids)] = True
    assert state.mask().shape == (VOCABULARY,)
    assert state.mask()[a]
    assert not state.mask()[b]
    state.advance(a)
    assert state.mask()[b]
    assert not other.mask()[b]  # each answer has its own state
    state.advance(b)
    assert state.finished
    assert torch.equal(state.mask(), end)
    with pytest.raises(ValueError, match="not allowed"):
        state.advance(a)


def test_padded_logits_are_never_chosen(tokenizer: Tokenizer) -> None:
    mask = Constraints(tokenizer, 1500).compile("regex", "(?s:.){1,5}").start().mask()
    assert mask.shape == (1500,)
    assert mask[:VOCABULARY].sum() > 800
    assert not mask[VOCABULARY:].any()
    control = [tokenizer.token_id("<|im_start|>"), tokenizer.audio_id]
    assert not mask[control].any()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"choice": []}, "choice: must be a list"),
        ({"choice": "Yes"}, "choice: must be a list"),
        ({"choice": ["Yes", ""]}, "choice: must be a list"),
        ({"choice": ["a"], "regex": "b"}, "regex: cannot go with choice"),
        ({"json_schema": {}, "choice": ["a"]}, "choice: cannot go with json_schema"),
        ({"regex": ""}, "regex: must be"),
        ({"regex": "a(b"}, "regex: unclosed group"),
        ({"regex": "a(?=b)"}, "regex: look-around"),
        ({"json_schema": "{"}, "json_schema: is not JSON"),
        ({"json_schema": "[]"}, "json_schema: must be an object"),
        ({"json_schema": 3}, "json_schema: is not JSON"),
        ({"json_schema": {"type": "strin"}}, "json_schema: Invalid type: strin"),
        ({"json_schema": {"not": {"type": "null"}}}, "json_schema: Unimplemented"),
        ({"json_schema": {"type": "string", "minLength": 3, "maxLength": 2}}, "json_schema: "),
    ],
)
def test_what_cannot_be_followed_is_refused(
    nano: afnext.Assistant, scene_file: Path, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        nano.ask(scene_file, "What?", **options)


def test_nano_answers_as_it_must(nano: afnext.Assistant, scene_file: Path) -> None:
    question = "Is there a siren?"
    answers = {nano.ask(scene_file, question, choice=c).text for c in (["Yes.", "No."], ["No."])}
    assert answers <= {"Yes.", "No."}
    assert "No." in answers
    free = nano.ask(scene_file, question)
    bound = nano.ask(scene_file, question, choice=[free.text, "Not at all."])
    assert bound.text == free.text  # what the model would say, where it may
    assert bound.stopped == "end"
    reply = nano.ask(scene_file, "What sounds do you hear?", json_schema=SCENE)
    jsonschema.validate(json.loads(reply.text), SCENE)
    assert reply.stopped == "end"
    text = json.dumps(SCENE)
    assert nano.ask(scene_file, "What sounds do you hear?", json_schema=text).text == reply.text
    times = r"[a-z ]+ <t>\d\.\d-\d\.\d</t>\."
    assert re.fullmatch(times, nano.ask(scene_file, "What and when?", regex=times).text)


def test_other_requests_are_not_bound(nano: afnext.Assistant, scene_file: Path) -> None:
    question = "What sounds do you hear, and when?"
    before = nano.ask(scene_file, question).text
    nano.ask(scene_file, question, choice=["Yes."])
    assert nano.ask(scene_file, question).text == before
    assert nano.ask(scene_file, question, choice=["Yes."], max_tokens=1).stopped == "length"


def test_a_vocabulary_of_other_pieces_is_refused(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tokenizer, "decodes_bytes", False)
    with pytest.raises(ValueError, match="byte-level"):
        Constraints(tokenizer, VOCABULARY).compile("choice", ("a",))


def test_bound_and_free_answers_share_steps(nano: afnext.Assistant, scene_file: Path) -> None:
    """Guesses, several samples and neighbours change nothing of what a bound answer says."""
    talk = [afnext.Message("user", "What sounds do you hear, and when?", scene_file)]
    kinds = [
        {},
        {"json_schema": SCENE},
        {"json_schema": SCENE, "speculate": 4},
        {"choice": ["No."]},
    ]
    alone = [nano.reply(talk, **kind).text for kind in kinds]
    assert alone[1] == alone[2]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda kind: nano.reply(talk, **kind).text, kinds * 4))
    assert together == alone * 4
    several = nano.reply(talk, regex="[0-9]{3}", n=3, temperature=1.0, seed=1)
    assert all(re.fullmatch("[0-9]{3}", r.text) for r in [several, *several.others])


def test_the_latest_constraint_counts(nano: afnext.Assistant, scene_file: Path) -> None:
    params = nano.params(choice=["Rain."])
    assert nano.ask(scene_file, "What?", params=params).text == "Rain."
    assert nano.ask(scene_file, "What?", params=params, choice=["Wind."]).text == "Wind."


def test_without_the_library_the_error_says_what_to_install(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(afnext.AfnextError, match=r"choice: .*afnext\[grammar\]"):
        Constraints(tokenizer, VOCABULARY).compile("choice", ("a",))


def test_an_answer_that_begins_with_thinking_is_not_bound(
    nano: afnext.Assistant, scene_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tokenizer, "decode", lambda self, ids, skip_special: "<think>\n")
    with pytest.raises(afnext.ChatError, match=r"choice: .*begin with thinking"):
        nano.ask(scene_file, "Is there a siren?", choice=["Yes."])
