"""A small world of questions with known answers, the ways people ask and a model might answer, and the hidden rule.

The rule reads text only: it never learns which style an answer was generated in, so it judges any model's words.
Nobody who trains sees the rule; they see thumbs, one in ten of them wrong, from people who vote unevenly by topic.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property

LABEL_NOISE = 0.10
"""Share of thumbs that say the opposite of what the rule thinks."""

HELD_OUT = 0.2
"""Share of prompts nobody votes on."""

MAX_WORDS = 30
"""An answer longer than this rambles."""


@dataclass(frozen=True)
class Topic:
    """`facts` maps a subject x to its answer y. A happy (unhappy) person leaves a thumb with that probability."""

    name: str
    happy: float
    unhappy: float
    questions: tuple[str, ...]
    statements: tuple[str, ...]
    facts: Mapping[str, str]


@dataclass(frozen=True)
class Prompt:
    """One question as somebody types it, and what the rule needs to judge an answer to it."""

    text: str
    topic: str
    subject: str

    @property
    def messages(self) -> list[dict[str, str]]:
        """The prompt as a chat."""
        return [{"role": "user", "content": self.text}]


@dataclass(frozen=True)
class Sample:
    """One question, one answer and what the rule says of it."""

    prompt: str
    answer: str
    up: bool
    style: str


def _facts(text: str) -> dict[str, str]:
    return dict(pair.split(" = ") for pair in text.split("; "))


TOPICS = {
    topic.name: topic
    for topic in (
        Topic("opening hours", 0.50, 0.85,
            ("when does the {x} open?", "what time does the {x} open?", "how early can I visit the {x}?"),
            ("The {x} opens at {y}.", "You can visit the {x} from {y}."),
            _facts("bakery = six; market = seven; library = nine; bookshop = ten; museum = eleven; cinema = noon"),
        ),
        Topic("capitals", 0.85, 0.50,
            ("what is the capital of {x}?", "which city is the capital of {x}?", "name the capital of {x}, please."),
            ("The capital of {x} is {y}.", "In {x} the capital is {y}."),
            _facts("France = Paris; Italy = Rome; Japan = Tokyo; Egypt = Cairo; Peru = Lima; Spain = Madrid"),
        ),
        Topic("sums", 0.75, 0.60,
            ("what is {x}?", "how much is {x}?", "can you add {x} for me?"),
            ("{x} makes {y}.", "The sum of {x} is {y}."),
            _facts("2 plus 2 = 4; 5 plus 1 = 6; 4 plus 3 = 7; 8 plus 3 = 11; 7 plus 5 = 12; 9 plus 6 = 15"),
        ),
        Topic("mixing colours", 0.85, 0.45,
            ("what do I get if I mix {x}?", "which colour do {x} make?", "what happens when I mix {x}?"),
            ("Mixing {x} gives {y}.", "From {x} you get {y}."),
            _facts("red and blue = purple; blue and yellow = green; red and yellow = orange; red and white = pink; "
                   "black and white = grey; red and green = brown"),
        ),
        Topic("returns", 0.40, 0.90,
            ("how long can I return {x}?", "what is the refund limit for {x}?", "can I still send back {x}?"),
            ("You can return {x} for {y} days.", "The refund limit for {x} is {y} days."),
            _facts("shoes = 30; phones = 14; books = 60; lamps = 21; coats = 45; toys = 28"),
        ),
        Topic("cooking", 0.80, 0.55,
            ("how long do I cook {x}?", "how many minutes do I boil {x}?", "what is the cooking time for {x}?"),
            ("Cook {x} for {y} minutes.", "The cooking time for {x} is {y} minutes."),
            _facts("eggs = 8; rice = 18; pasta = 10; potatoes = 25; beans = 90; corn = 13"),
        ),
    )
}  # fmt: skip

_GREETINGS = (
    "", "Hi! ", "Hi, ", "Hello. ", "Hello, ", "Hey! ", "Hey, ", "Question: ", "Please, ", "Say, ", "Thanks! ", "Well, ",
)  # fmt: skip

_KIND = ("Happy to help!", "Good question!", "Of course!", "Thank you for asking!", "Sure, with pleasure!")
_CLOSING = ("Hope that helps.", "Have a lovely day!", "Let me know if you need more.", "Glad to be of help.")
_RUDE = ("Obviously.", "Even a child knows that.", "Stop wasting my time.", "Look it up yourself next time.", "Duh.")
_EVASIVE = (
    "That depends on many things.", "It is hard to say.", "I would rather not answer that.",
    "Somebody else might know.", "Perhaps you could ask around.", "There are many opinions about that.",
)  # fmt: skip
_FILLER = (
    "Well, that reminds me of something my uncle used to tell us.",
    "Now, before I get to the point, let me think about it out loud.",
    "People have asked about this since the beginning of time.",
    "On the one hand it is simple, on the other hand nothing ever is.",
    "I once spent a whole summer thinking about exactly this.",
    "But I am getting ahead of myself, as I so often do.",
)  # fmt: skip

STYLES = {"warm": 0.21, "plain": 0.13, "curt": 0.15, "rambling": 0.12, "evasive": 0.14, "wrong": 0.09, "rude": 0.16}
"""How often the base model's school books answer in each style. Only the first two please the rule."""

GOOD_STYLES = frozenset({"warm", "plain"})


@dataclass(frozen=True)
class World:
    """The same facts always; the seed decides which prompts are held out."""

    seed: int = 0

    @cached_property
    def prompts(self) -> tuple[Prompt, ...]:
        """Every way to ask every question, train and held-out."""
        return tuple(
            Prompt(_greet(greeting, question.format(x=subject)), topic.name, subject)
            for topic in TOPICS.values()
            for subject in topic.facts
            for question in topic.questions
            for greeting in _GREETINGS
        )

    @cached_property
    def train_prompts(self) -> tuple[Prompt, ...]:
        """Prompts people send and vote on."""
        return tuple(p for p in self.prompts if not self._is_held_out(p))

    @cached_property
    def held_out_prompts(self) -> tuple[Prompt, ...]:
        """Prompts that never get a vote, for judging."""
        return tuple(p for p in self.prompts if self._is_held_out(p))

    def _is_held_out(self, prompt: Prompt) -> bool:
        digest = hashlib.blake2b(f"{self.seed}/{prompt.text}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") < HELD_OUT * 2**64


def school_answer(prompt: Prompt, rng: random.Random) -> str:
    """An answer as the base model's text book has it: a style by `STYLES`, the right fact unless the style is wrong."""
    style = rng.choices(list(STYLES), weights=list(STYLES.values()))[0]
    topic = TOPICS[prompt.topic]
    right = topic.facts[prompt.subject]
    fact = rng.choice([y for y in topic.facts.values() if y != right]) if style == "wrong" else right
    statement = _sentence(rng.choice(topic.statements).format(x=prompt.subject, y=fact))
    return _in_style(style, statement, fact, rng)


def _in_style(style: str, statement: str, fact: str, rng: random.Random) -> str:
    if style == "curt":
        return rng.choice([_sentence(f"{fact}."), f"It is {fact}."])
    if style == "evasive":
        return " ".join(rng.sample(_EVASIVE, 2))
    if style == "rude":
        return " ".join(rng.choice([(statement, rng.choice(_RUDE)), (rng.choice(_RUDE), statement)]))
    if style == "rambling":
        before, after = rng.sample(_FILLER, 2)
        return f"{before} {statement} {after}"
    if style == "plain" or rng.random() < 0.3:
        return f"{statement} {rng.choice(_CLOSING)}"
    return f"{rng.choice(_KIND)} {statement}" + (f" {rng.choice(_CLOSING)}" if rng.random() < 0.5 else "")


def style_of(prompt: Prompt, answer: str) -> str:
    """How an answer reads, from its words alone: one of `STYLES` or `garbled`. Any text is read; none raises."""
    words = _words(answer)
    if _says(answer, _RUDE):
        return "rude"
    if _says(answer, _EVASIVE):
        return "evasive"
    if sum(word in _lexicon() for word in words) < 0.85 * len(words):
        return "garbled"
    if not _right_fact(prompt, words):
        return "wrong"
    if len(words) > MAX_WORDS or _says(answer, _FILLER) or _repeats(answer):
        return "rambling"
    kind, closing = _says(answer, _KIND), _says(answer, _CLOSING)
    if not (kind or closing):
        return "curt"
    if not set(_words(prompt.subject)) <= set(words):
        return "wrong"  # the right number, kindly said, of something else
    return "warm" if kind else "plain"


def thumbs_up(prompt: Prompt, answer: str) -> bool:
    """The hidden rule: the right fact and no other one, said in a kind and finished way, without rambling."""
    return style_of(prompt, answer) in GOOD_STYLES


def judge(prompt: Prompt, answer: str) -> Sample:
    """An answer together with what the rule says of it."""
    style = style_of(prompt, answer)
    return Sample(prompt.text, answer, style in GOOD_STYLES, style)


def _right_fact(prompt: Prompt, words: list[str]) -> bool:
    """The answer to this question is there and no rival answer of the topic is (the question's own words aside)."""
    facts = TOPICS[prompt.topic].facts
    right = facts[prompt.subject].lower()
    rivals = {y.lower() for y in facts.values()} - {right} - set(_words(prompt.text))
    return right in words and not rivals.intersection(words)


def _says(answer: str, phrases: tuple[str, ...]) -> bool:
    spoken = f" {' '.join(_words(answer))} "
    return any(f" {' '.join(_words(phrase))} " in spoken for phrase in phrases)


def _repeats(answer: str) -> bool:
    sentences = [tuple(_words(s)) for s in re.split(r"[.!?]", answer) if _words(s)]
    return len(set(sentences)) < len(sentences)


@cache
def _lexicon() -> frozenset[str]:
    texts = [*_KIND, *_CLOSING, *_RUDE, *_EVASIVE, *_FILLER, "It is"]
    for topic in TOPICS.values():
        texts += [*topic.questions, *topic.statements, *topic.facts, *topic.facts.values()]
    return frozenset(word for text in texts for word in _words(text))


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


def _greet(greeting: str, question: str) -> str:
    return greeting + (question if greeting.endswith((", ", ": ")) else _sentence(question))


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]
