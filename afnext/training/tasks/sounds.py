"""What sounds, when and how often: questions about events.

Answers have a fixed form that can be parsed and checked; questions are phrased in many ways. Times are
seconds with one decimal inside ``<t>...</t>``. Speech and music are events among the others here.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import pairwise

from afnext.training.synthesis.scenes import Event
from afnext.training.synthesis.sounds import CLASSES
from afnext.training.tasks.exchange import Exchange, ask, seconds, span
from afnext.training.tasks.lexicon import UNHEARD, WORDS

Events = Sequence[Event]

QUESTIONS: dict[str, tuple[str, ...]] = {
    "list": (
        "What do you hear, and when?",
        "What sounds do you hear, and when?",
        "What sounds are there and when do they occur?",
        "What happens in this recording, and when?",
        "What happens, and at what times?",
        "What happens when?",
        "List the sounds with their times.",
        "List all sound events with timestamps.",
        "List every event with start and end times.",
        "Which sounds occur, and at what times?",
        "Which events can you hear, and when?",
        "Which sounds are in the audio? Give the times.",
        "Name the sounds and their timestamps.",
        "Detect the sound events.",
        "Describe the audio with timestamps.",
        "What can be heard?",
        "What do you hear?",
        "What is in this recording?",
        "What sounds are in the clip?",
        "What is going on in this audio?",
        "Tell me what happens and when.",
        "Give me a timeline of the sounds.",
        "Tell me all the sounds and when they happen.",
        "Please list what you hear with times.",
        "I want to know what sounds there are and when.",
        "Make a list of the events and their times.",
        "Could you list the sounds of this file with timestamps?",
        "What are the sounds, from when to when?",
        "Give every sound with its start and end.",
        "Note down all sounds with times.",
        "Annotate the recording.",
        "Show me the sounds on a timeline.",
        "What noises are in this file, and when do they start and end?",
        "[What|Which] [sounds|noises|events|sound events] [are there|do you hear|can be heard|can you hear|occur|does it contain], [and |]when?",
        "[What|Which] [sounds|noises|things] [do you notice|do you recognise|do you find|come up|appear|are audible] and [when|at what second|at what time|from when to when]?",
        "[Can|Could|Would|Will] you [please |][list|name|write down|give me|find|mark|show me] [all|the|all the|every one of the] [sounds|noises|events] [with times|with timestamps|with their times|and when they occur|and when they begin and end]?",
        "[Please |][list|name|give|show|find|detect|note|mark|identify|extract|log] [all|the|all the|any] [sounds|noises|events|sound events] [with times|with timestamps|with start and end|and their times|in order, with times]",
        "[I need|I want|I would like|I'd like|We need|Give me|Let me have] [a list of |][all|the|all the] [sounds|noises|events] [with times|with timestamps|and their times|and when they happen]",
        "[Give me|Show me|Make|Write|I need|Prepare|Create] [a|the] [timeline|list|log|table|protocol] of [what happens|the sounds|all events|everything that you hear|the noises][ with times| in seconds|]",
        "[Tell me|Say|Explain|Describe|Report] [what|everything that] [happens|is heard|you hear|goes on|can be heard] and when[ it happens| exactly|]",
        "[What's|What is] [happening|going on|to be heard] [here|in this clip|in my recording|on this tape], and [when|at which times]?",
        "[All|The] [sounds|events|noises] [with|and their] [times|timestamps|seconds], please",
        "[Sound events|Sounds|Events|Timeline|Noises] [and|with] [times|timestamps]",
        "[Go through|Analyse|Listen to|Check] [the recording|this file|the audio|this clip] and [list|write down|tell me|report] [the|all|all the] [sounds|events|noises] [with times|with timestamps|and when they are]",
        "[When|At what times] [does what happen|do which sounds occur|is what heard|do I hear what]?",
    ),
    "when": (
        "When does the {noun} {verb}?",
        "When does {a} {verb}?",
        "When do you hear the {noun}?",
        "When do you hear {a}?",
        "When is the {noun}?",
        "When is there {a}?",
        "When can the {noun} be heard?",
        "At what time does the {noun} {verb}?",
        "At what times is the {noun} heard?",
        "What time does the {noun} {verb}?",
        "Where in the recording is the {noun}?",
        "Find the {noun}.",
        "Give the times of the {noun}.",
        "Timestamps of the {noun}?",
        "When does the sound of the {noun} occur?",
        "From when to when is the {noun} heard?",
        "Can you tell me when the {noun} is heard?",
        "Please give the time of the {noun}.",
        "I want to know when the {noun} happens.",
        "When exactly does the {noun} {verb}?",
        "At which time do you hear {a}?",
        "Show me where the {noun} is.",
        "When does the {noun} start and end?",
        "Locate the {noun} in the audio.",
        "In which part of the recording is the {noun}?",
        "Which seconds contain the {noun}?",
        "[At what|At which|In which|On which] [second|seconds|moment|point|time|place] [does the {noun} {verb}|is the {noun}|is there {a}|do you hear the {noun}|can I hear {a}]?",
        "[Can|Could|Would|Will] you [please |][tell me|say|find|show me|work out] when [the {noun} is heard|the {noun} {verb}s|there is {a}|I hear the {noun}|you hear {a}]?",
        "[Please |][find|locate|mark|look for|show|search for] [the {noun}|{a}|the sound of the {noun}|every {noun}][ in the recording| for me|]",
        "[I need|I want|Give me|Tell me|Let me know|Say|Note] [the time of the {noun}|the times of the {noun}|the start and end of the {noun}|when the {noun} is heard|the timestamps of the {noun}|the second when you hear {a}|when there is {a}]",
        "[The {noun}|{a}]: [when|at what time|which seconds|where in the recording]?",
        "[When|How late|At what time] [did|do|can|could] you [hear|notice|catch|detect] [the {noun}|{a}]?",
        "[When|Where|At what second] [is|was] [the {noun}|{a}][ heard| to be heard| in this clip|]?",
        "[I am searching for|I missed|I'm interested in|I only care about|I thought I heard] the {noun}. [When was it?|Where is it?|At what time?|Which seconds?]",
        "[When|At what time] does the {noun} [start|begin|come|sound|set in|stop and start]?",
        "[Time of the {noun}|Times for the {noun}|Timestamps for {a}|Start of the {noun}]",
    ),
    "presence": (
        "Is there {a}?",
        "Is there {a} in the recording?",
        "Is there {a} in this clip?",
        "Is {a} audible?",
        "Is the {noun} there?",
        "Do you hear {a}?",
        "Do you hear the {noun}?",
        "Can you hear {a}?",
        "Can you hear {a} in the audio?",
        "Can {a} be heard?",
        "Does {a} {verb}?",
        "Does the {noun} {verb} in this recording?",
        "Does the audio contain {a}?",
        "Was there {a}?",
        "Are there any sounds of {a}?",
        "Any {noun}?",
        "Could there be {a} in this file?",
        "Tell me whether there is {a}.",
        "Tell me if you hear {a}.",
        "Is {a} in the recording?",
        "Does {a} occur?",
        "Is {a} among the sounds?",
        "Have you heard {a}?",
        "Does this file have {a} in it?",
        "[Did|Do|Can|Could] [you|I|we|one] [hear|find|detect|notice|catch|recognise] [{a}|the {noun}|any {noun}] [here|in this|in this file|in the clip|anywhere in it|in this recording]?",
        "[Is|Was] there [{a}|any {noun}] [here|in this|anywhere|somewhere|in the file|in the audio|to be heard|in the background]?",
        "[Is|Was] [{a}|the {noun}] [heard|audible|present|in here|to be heard|in the audio|in this file|one of the sounds|part of it]?",
        "[Can|Could|Would] you [please |][tell me|say|check|find out|confirm] [if|whether] [there is {a}|you hear {a}|{a} is heard|the {noun} is there]?",
        "[Please |][tell me|check|say|find out|confirm|let me know] [if|whether] [there is {a}|you hear {a}|{a} is heard|the {noun} is there|the recording has {a}]",
        "[I want to know|I wonder|I need to know|I am not sure|My friend asks] [if|whether] [there is {a}|you hear {a}|{a} is heard|the {noun} is there]",
        "[I think|I believe|My wife says|Somebody told me] there is {a}. [Is that right?|Is that true?|Do you hear it?|Can you hear it?]",
        "[{a}|The {noun}|Any {noun}] [in there|in it|here|or not|, yes or no]?",
        "[Does|Did] [the recording|this clip|the file|this audio|it] [have|contain|include|feature] [{a}|any {noun}|the sound of the {noun}]?",
        "[Does|Did] [{a}|the {noun}] [{verb}|occur|appear|come up] [here|in this|in the recording|at any time|at some point]?",
    ),
    "count": (
        "How many sounds are there?",
        "How many sounds do you hear?",
        "How many events are in the recording?",
        "How many sound events can be heard?",
        "How many different things happen?",
        "Count the sounds.",
        "Count the events in this clip.",
        "What is the number of sounds?",
        "Can you count the sounds?",
        "How many sounds occur here?",
        "Tell me how many sounds there are.",
        "How many things do you hear?",
        "I want the number of events.",
        "How many sounds does the file have?",
        "[How many|What number of] [sounds|noises|events|sound events|things] [are there|do you hear|can be heard|can you hear|occur|happen|are in it][ in all| in this clip| altogether| in the recording|]?",
        "[Can|Could|Would] you [please |]count [the|all|all the] [sounds|noises|events]?",
        "[Please |][count|give me the number of|tell me the number of|say how many] [sounds|noises|events][ there are| you hear|]",
        "[I need|I want|I'd like] [the number of|to know how many] [sounds|noises|events][ there are| you hear|]",
        "[Number|Total|Count] of [sounds|events|noises]?",
    ),
    "count_of": (
        "How many times does the {noun} {verb}?",
        "How often does the {noun} {verb}?",
        "How often do you hear {a}?",
        "How many times do you hear the {noun}?",
        "Count how often the {noun} is heard.",
        "Tell me how often the {noun} is heard.",
        "Can you count how many times the {noun} occurs?",
        "How many of {noun} are there?",
        "How many times is there {a}?",
        "I want to know how often there is {a}.",
        "[How often|How many times] [did|do|can] you hear [the {noun}|{a}|any {noun}]?",
        "[How often|How many times] [is|was] [the {noun}|{a}] [heard|audible|to be heard|there]?",
        "[Please |]count [how often|how many times] [the {noun} is heard|there is {a}|you hear {a}]",
        "[Can|Could|Would] you [tell me|say|count] [how often|how many times] [the {noun} is heard|there is {a}|you hear {a}]?",
        "[Number of times|How many times] [the {noun} is heard|there is {a}]?",
    ),
    "first": (
        "Which sound is first?",
        "Which sound comes first?",
        "What comes first?",
        "What is the first sound?",
        "What do you hear first?",
        "What happens first?",
        "What does the recording begin with?",
        "Name the first sound.",
        "Can you tell me what comes first?",
        "Which of the sounds is the first?",
        "How does the recording begin?",
        "What starts the recording?",
        "[What|Which sound|Which noise|Which event|Which one] [is|was|comes|came|is heard|do you hear|can be heard|occurs|happens] [first|first of all|earliest|at the start|at the beginning]?",
        "[What|Which sound] [starts|begins|opens] [it|the clip|the file|this audio|everything]?",
        "[Can|Could] you [tell me|name|say] [the first sound|which sound is first|what is heard first]?",
        "[Please |][name|tell me|say|give me] [the first sound|the earliest sound|what is heard first|what comes first]",
        "[First|Earliest|Opening] [sound|event|noise]?",
    ),
    "last": (
        "Which sound is last?",
        "Which sound comes last?",
        "What is the last sound?",
        "What do you hear last?",
        "What happens last?",
        "What happens at the end?",
        "What does the recording end with?",
        "Name the last sound.",
        "Can you tell me what comes last?",
        "Which of the sounds is the last?",
        "How does the recording end?",
        "What is heard at the very end?",
        "[What|Which sound|Which noise|Which event|Which one] [is|was|comes|came|is heard|do you hear|can be heard|occurs|happens] [last|last of all|latest|at the end|at the very end|finally]?",
        "[What|Which sound] [ends|closes|finishes] [it|the clip|the file|this audio|everything]?",
        "[Can|Could] you [tell me|name|say] [the last sound|which sound is last|what is heard last]?",
        "[Please |][name|tell me|say|give me] [the last sound|the final sound|what is heard last|what comes last]",
        "[Last|Latest|Final|Closing] [sound|event|noise]?",
    ),
    "after": (
        "What comes after the {noun}?",
        "What happens after the {noun}?",
        "What follows the {noun}?",
        "Which sound comes right after the {noun}?",
        "What do you hear after the {noun}?",
        "What is the next sound after the {noun}?",
        "Which sound follows the {noun}?",
        "Tell me what comes after the {noun}.",
        "Once the {noun} is heard, what is next?",
        "[What|Which sound|Which noise] [is|was|comes|do you hear|is heard|can be heard] [after|right after|directly after|next after] [the {noun}|{a}]?",
        "After the {noun}, [what comes|what is heard|which sound is next|what do you hear]?",
    ),
    "before": (
        "What comes before the {noun}?",
        "What happens before the {noun}?",
        "Which sound comes right before the {noun}?",
        "What do you hear before the {noun}?",
        "What precedes the {noun}?",
        "Which sound precedes the {noun}?",
        "Tell me what comes before the {noun}.",
        "What is heard just before the {noun}?",
        "[What|Which sound|Which noise] [is|was|comes|do you hear|is heard|can be heard] [before|right before|directly before|just before] [the {noun}|{a}]?",
        "Before the {noun}, [what comes|what is heard|which sound is there|what do you hear]?",
    ),
    "which_first": (
        "Which comes first, the {noun} or the {other}?",
        "Which is first: the {noun} or the {other}?",
        "What do you hear first, the {noun} or the {other}?",
        "Which sound is earlier, the {noun} or the {other}?",
        "Tell me which is first, the {noun} or the {other}.",
        "Of the {noun} and the {other}, which comes first?",
        "[What|Which|Which one|Which sound] [comes|is|is heard|starts|happens|was] [first|earlier], the {noun} or the {other}?",
        "[The {noun}|{a}] or the {other}: [which|which one|what] is [first|earlier]?",
    ),
    "is_before": (
        "Does the {noun} come before the {other}?",
        "Is the {noun} before the {other}?",
        "Do you hear the {noun} before the {other}?",
        "Does the {noun} start earlier than the {other}?",
        "Is the {noun} heard earlier than the {other}?",
        "Tell me if the {noun} is before the {other}.",
        "[Is|Was|Does|Do you hear] the {noun} [come |]before the {other}?",
        "[Is|Was] the {noun} [earlier than|ahead of|heard before|in front of] the {other}?",
    ),
    "at": (
        "What do you hear at {time} seconds?",
        "What can be heard at {time} seconds?",
        "What happens at {time} seconds?",
        "Which sound is there at {time} s?",
        "What is heard at <t>{time}</t>?",
        "What sound is playing {time} seconds in?",
        "Tell me what is heard at {time} seconds.",
        "At {time} seconds, what do you hear?",
        "[What|Which sound] [do you hear|can you hear|is there|is heard|is audible|plays|happens] [at|around|at about] [second {time}|{time} seconds|{time} s]?",
        "[Tell me|Say] [what|which sound] [is heard|you hear|is there|happens] at [second {time}|{time} seconds|{time} s]",
    ),
    "caption": (
        "Describe the audio.",
        "Describe this recording.",
        "Describe what you hear.",
        "Describe the sounds in a sentence.",
        "Write a caption.",
        "Caption this audio.",
        "Give me a short description of the clip.",
        "Summarize the recording.",
        "Generate a caption for the input audio.",
        "Generate a detailed caption for the input audio.",
        "Describe the file.",
        "What is this a recording of? Answer in a sentence.",
        "Tell me in one sentence what is heard.",
        "Could you describe what you hear?",
        "Say briefly what happens.",
        "[Please |][describe|summarise|summarize|caption] [the audio|this recording|what you hear|the clip|this file|the sounds][ in a sentence| in one sentence| briefly| in a few words|]",
        "[Can|Could|Would] you [please |][describe|summarise|caption] [the audio|this recording|what you hear|the clip|this file|the sounds][ in a sentence| briefly|]?",
        "[Write|Give me|I need|Make|Compose|I want] [a|one|a short|a brief] [caption|description|summary|sentence] [for|about|of] [the audio|this recording|what you hear|the clip|this file|the sounds]",
        "[Tell me|Say] [in a sentence|in one sentence|briefly|shortly|in your own words] what [happens|is heard|you hear|goes on|this sounds like]",
        "[What|How] would you [say happens here|write under this recording|describe this|put this into words]?",
        "[Caption|Summary|Description|A caption|One sentence][ please|, please|]",
    ),
}
"""Phrasings of every task. ``{a}`` is the noun with its article, ``[a|b]`` one of the two."""


def listing(events: Events) -> str:
    """``bell <t>1.2-2.5</t>, siren <t>3.0-4.1</t>.``, or ``Nothing.``"""
    return ", ".join(f"{e.label} {span(e)}" for e in events) + "." if events else "Nothing."


def counted(events: Events) -> str:
    """``bell, siren: 2.``, or ``0.``"""
    labels = ", ".join(e.label for e in events)
    return f"{labels}: {len(events)}." if events else "0."


def caption(events: Events) -> str:
    """One sentence; overlapping neighbours are joined by "while", others by "then"."""
    if not events:
        return "Nothing happens."
    text = WORDS[events[0].label].sentence
    for previous, event in pairwise(events):
        link = "while" if event.onset < previous.offset - 0.2 else "then"
        text += f", {link} {WORDS[event.label].sentence}"
    return text[0].upper() + text[1:] + "."


def _ask(task: str, answer: str, rng: random.Random, label: str = "", **fields: str) -> Exchange:
    return ask(task, QUESTIONS[task], answer, rng, label, **fields)


def absent_label(events: Events, rng: random.Random) -> str:
    """Something that is not in the clip; half of the time easily confused with what is."""
    present = {e.label for e in events}
    roll = rng.random()
    if roll < 0.2:
        return rng.choice(UNHEARD)
    near = [c for e in events for c in WORDS[e.label].confused_with if c not in present]
    if roll < 0.6 and near:
        return rng.choice(near)
    return rng.choice([c for c in (*CLASSES, "speech", "music") if c not in present])


def _unique(events: Events) -> list[int]:
    labels = [e.label for e in events]
    return [i for i, label in enumerate(labels) if labels.count(label) == 1]


def _listing(events: Events, rng: random.Random) -> Exchange:
    return _ask("list", listing(events), rng)


def _when(events: Events, rng: random.Random) -> Exchange:
    if not events or rng.random() < 0.2:
        label = absent_label(events, rng)
        return _ask("when", f"There is no {label}.", rng, label)
    label = rng.choice(events).label
    return _ask("when", f"At {', '.join(span(e) for e in events if e.label == label)}.", rng, label)


def _presence(events: Events, rng: random.Random) -> Exchange:
    if events and rng.random() < 0.5:
        return _ask("presence", "Yes.", rng, rng.choice(events).label)
    return _ask("presence", "No.", rng, absent_label(events, rng))


def _count(events: Events, rng: random.Random) -> Exchange:
    return _ask("count", counted(events), rng)


def _count_of(events: Events, rng: random.Random) -> Exchange:
    present = bool(events) and rng.random() < 0.75
    label = rng.choice(events).label if present else absent_label(events, rng)
    hits = [e for e in events if e.label == label]
    return _ask(
        "count_of", f"{', '.join(map(span, hits))}: {len(hits)}." if hits else "0.", rng, label
    )


def direct(task: str, answer: str) -> str:
    """The answer without what is counted before it: ``2.`` of ``bell, siren: 2.``; that to other questions as
    it is.
    """
    return answer.rpartition(": ")[2] if task in ("count", "count_of") else answer


def _first(events: Events, rng: random.Random) -> Exchange:
    return _ask("first", f"{events[0].label}." if events else "Nothing.", rng)


def _last(events: Events, rng: random.Random) -> Exchange:
    return _ask("last", f"{events[-1].label}." if events else "Nothing.", rng)


def _neighbour(events: Events, rng: random.Random) -> Exchange | None:
    if not (unique := _unique(events)):
        return None
    i = rng.choice(unique)
    task, j = rng.choice((("after", i + 1), ("before", i - 1)))
    answer = f"{events[j].label}." if 0 <= j < len(events) else "Nothing."
    return _ask(task, answer, rng, events[i].label)


def _pair(events: Events, rng: random.Random) -> Exchange | None:
    if len(unique := _unique(events)) < 2:
        return None
    i, j = rng.sample(unique, 2)
    a, b = events[i].label, events[j].label
    if rng.random() < 0.5:
        return _ask("which_first", f"{a if i < j else b}.", rng, a, other=b)
    return _ask("is_before", "Yes." if i < j else "No.", rng, a, other=b)


def _at(events: Events, rng: random.Random) -> Exchange | None:
    """A moment at least 0.2 s away from every onset and offset."""
    if not events:
        return None
    end = max(e.offset for e in events)
    for _ in range(8):
        if rng.random() < 0.75:
            event = rng.choice(events)
            moment = round(rng.uniform(event.onset, event.offset), 1)
        else:
            moment = round(rng.uniform(0, end), 1)
        if all(abs(moment - t) >= 0.2 for e in events for t in (e.onset, e.offset)):
            labels = [e.label for e in events if e.onset < moment < e.offset]
            answer = f"{', '.join(labels)}." if labels else "Nothing."
            return _ask("at", answer, rng, time=seconds(moment))
    return None


def _caption(events: Events, rng: random.Random) -> Exchange:
    return _ask("caption", caption(events), rng)


Maker = Callable[[Events, random.Random], "Exchange | None"]


MAKERS: dict[str, tuple[float, Maker]] = {
    "presence": (3.0, _presence),
    "when": (2.0, _when),
    "count": (0.8, _count),
    "count_of": (0.4, _count_of),
    "first": (0.4, _first),
    "last": (0.4, _last),
    "neighbour": (0.8, _neighbour),
    "pair": (0.8, _pair),
    "at": (0.7, _at),
    "caption": (0.6, _caption),
    "list": (1.5, _listing),
}
"""How often each kind of question is drawn, and what makes it; None where it does not fit the clip."""
