"""Rephrases and random sentences from a language model behind an endpoint.

Each answer passes the controls or is asked for again, with another seed, up to a bound;
then the kind is left out of this probe, with the reason. What is asked follows from the
text and the build's seed alone, so that the same cache gives the same answers in any
order of arrival.
"""

from __future__ import annotations

import math
import threading
import tomllib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined, TemplateError
from jinja2.meta import find_undeclared_variables
from jinja2.sandbox import SandboxedEnvironment

from ldeval.errors import ProbeError
from ldeval.probes.answers import Answer, AnswerCache, request_key
from ldeval.probes.controls import Controls, cleaned, fault, word_count
from ldeval.probes.corpus import Entry, text_key
from ldeval.probes.endpoint import Endpoint, NoAnswerError, RefusedError
from ldeval.records import KIND_BY_NAME

REPHRASED_KINDS = (
    "chosen_semantic",
    "chosen_format",
    "rejected_semantic",
    "rejected_format",
    "random_sentence",
)
"""The kinds that a model writes, in the order of the kind table."""

_VARIABLES = {
    "semantic": "reference",
    "format": "reference",
    "random_sentence": "words",
}
"""The one variable of each instruction."""
_FRAME = """\
Given the reference sentence, please generate an output sentence. {} \
Please only return the output sentence.
Reference sentence: {{{{ reference }}}}
Output:"""


@dataclass(frozen=True)
class Instructions:
    """What the model is told, as Jinja templates; by default the paper's words."""

    system: str = "You are a helpful assistant."
    semantic: str = _FRAME.format(
        "Please use different words as much as possible while keeping the meaning of "
        "the reference sentence unchanged."
    )
    """With the variable ``reference``."""
    format: str = _FRAME.format(
        "Please change the meaning of the reference sentence as much as possible while "
        "keeping the format of it."
    )
    """With the variable ``reference``."""
    random_sentence: str = "Please generate a random sentence with {{ words }} words."
    """With the variable ``words``, their number in chosen."""


@dataclass(frozen=True)
class RephraseSettings:
    """How often and how to ask; all of it decides what an answer is."""

    seed: int = 0
    tries: int = 3
    """Answers asked for, at most, for one response."""
    retry_refused: bool = False
    """Ask again what the endpoint refused in an earlier run."""
    temperature: float = 0.7
    top_p: float = 1.0
    kinds: tuple[str, ...] = REPHRASED_KINDS
    controls: Controls = field(default_factory=Controls)
    instructions: Instructions = field(default_factory=Instructions)


@dataclass(frozen=True)
class Outcome:
    """What became of one response that was asked for."""

    kind: str
    text: str | None
    """None: left out."""
    rejected: tuple[str, ...]
    """The rules that its answers broke, one for each rejected answer."""
    tries: int
    similarity: float | None = None
    """Cosine of the embeddings of reference and rephrase."""


@dataclass
class Tally:
    """Outcomes, counted."""

    asked: Counter[str] = field(default_factory=Counter)
    """Answers, by kind."""
    accepted: Counter[str] = field(default_factory=Counter)
    """Responses, by kind."""
    rejected: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Answers, by kind and reason."""
    left_out: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Responses, by kind and the last reason."""

    def add(self, outcome: Outcome) -> None:
        """Count one outcome."""
        self.asked[outcome.kind] += outcome.tries
        self.rejected.update((outcome.kind, reason) for reason in outcome.rejected)
        if outcome.text is None:
            self.left_out[outcome.kind, outcome.rejected[-1]] += 1
        else:
            self.accepted[outcome.kind] += 1


def read_instructions(path: Path) -> Instructions:
    """Instructions from a TOML file with the fields of :class:`Instructions`.

    Raises:
        ProbeError: when the file, a name in it or a template is wrong.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ProbeError(
            f"cannot be read as TOML ({error}).",
            path=path,
            remedy='For example: semantic = "Say otherwise: {{ reference }}"',
        ) from error
    names = [item.name for item in fields(Instructions)]
    for name, value in values.items():
        if name not in names or not isinstance(value, str):
            raise ProbeError(
                "is not an instruction, or not text.",
                path=path,
                field=name,
                remedy=f"Valid: {', '.join(names)}.",
            )
    instructions = Instructions(**values)
    for name, variable in _VARIABLES.items():
        _check_template(path, name, getattr(instructions, name), variable)
    return instructions


def _check_template(path: Path, name: str, source: str, variable: str) -> None:
    environment = SandboxedEnvironment()
    try:
        used = find_undeclared_variables(environment.parse(source))
    except TemplateError as error:
        raise ProbeError(
            f"is not a Jinja template ({error}).",
            path=path,
            field=name,
            remedy="Check its braces.",
        ) from error
    if used != {variable}:
        raise ProbeError(
            f"uses {sorted(used) or 'no variable'}.",
            path=path,
            field=name,
            remedy=f"It must use {{{{ {variable} }}}}, and nothing else.",
        )


class Rephraser:
    """Asks for the rephrased kinds of many probes at once; :meth:`close` it."""

    def __init__(
        self,
        endpoint: Endpoint,
        cache: AnswerCache,
        settings: RephraseSettings,
        *,
        embedder: Endpoint | None = None,
    ) -> None:
        self.tally = Tally()
        self.endpoint = endpoint
        self.settings = settings
        self._cache = cache
        self._embedder = embedder
        self._lock = threading.Lock()
        self._flights: dict[str, tuple[threading.Lock, int]] = {}
        # values are filled in, never rendered: template syntax in them stays text
        environment = SandboxedEnvironment(undefined=StrictUndefined)
        told = settings.instructions
        self._templates = {
            name: environment.from_string(getattr(told, name))
            for name in ("system", "semantic", "format", "random_sentence")
        }

    def close(self) -> None:
        """Close the connections."""
        self.endpoint.close()
        if self._embedder is not None:
            self._embedder.close()

    def stream(
        self, entries: Iterable[Entry], *, claim: Callable[[str], bool]
    ) -> Iterator[tuple[Entry, dict[str, Outcome]]]:
        """Entries in their order, each with its outcomes by kind.

        So many requests run at a time as the endpoint's settings allow; no more entries
        are held than that.

        Args:
            claim: takes a random sentence for one probe; False where another has it.

        Raises:
            EndpointError: when the endpoint cannot be used.
        """
        workers = self.endpoint.settings.concurrency
        waiting: deque[tuple[Entry, list[Future[Outcome]]]] = deque()
        pool = ThreadPoolExecutor(max_workers=workers)
        try:
            for entry in entries:
                wanted = [k for k in self.settings.kinds if self._reference(k, entry)]
                futures = [pool.submit(self.ask, kind, entry) for kind in wanted]
                waiting.append((entry, futures))
                if len(waiting) > workers:
                    yield self._settled(*waiting.popleft(), claim)
            while waiting:
                yield self._settled(*waiting.popleft(), claim)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _settled(
        self,
        entry: Entry,
        futures: Sequence[Future[Outcome]],
        claim: Callable[[str], bool],
    ) -> tuple[Entry, dict[str, Outcome]]:
        outcomes = {}
        for future in futures:
            outcome = future.result()
            while (
                outcome.kind == "random_sentence"
                and outcome.text is not None
                and not claim(outcome.text)
            ):
                rejected = (*outcome.rejected, "duplicate")
                outcome = self.ask(outcome.kind, entry, outcome.tries, rejected)
            self.tally.add(outcome)
            outcomes[outcome.kind] = outcome
        return entry, outcomes

    def ask(
        self,
        kind: str,
        entry: Entry,
        tried: int = 0,
        rejected: tuple[str, ...] = (),
    ) -> Outcome:
        """One response: ask, check, ask again.

        Args:
            tried, rejected: what was asked before, where this goes on.
        """
        reference = self._reference(kind, entry)
        words = word_count(reference)
        request = self._messages(kind, reference, words)
        bare = self._messages(kind, "", words)[-1]["content"]
        for attempt in range(tried, self.settings.tries):
            try:
                answer = self._answer(kind, entry, request, attempt, words)
            except RefusedError:
                return Outcome(kind, None, (*rejected, "refused"), attempt + 1)
            except NoAnswerError:
                return Outcome(kind, None, (*rejected, "no answer"), attempt + 1)
            text = cleaned(answer.text, reference)
            reason = fault(
                text,
                reference=reference,
                instruction=bare,
                words=words,
                finished=answer.finished,
                controls=self.settings.controls,
            )
            if reason is None:
                similarity = self._similarity(kind, reference, text)
                return Outcome(kind, text, rejected, attempt + 1, similarity)
            rejected = (*rejected, reason)
        return Outcome(kind, None, rejected, max(tried, self.settings.tries))

    def _reference(self, kind: str, entry: Entry) -> str:
        """What a kind rephrases, or is as long as; empty where there is none."""
        base = KIND_BY_NAME[kind].rephrase_of or "chosen"
        text = entry.example.chosen if base == "chosen" else entry.example.rejected
        return (text or "").strip()

    def _messages(self, kind: str, reference: str, words: int) -> list[dict[str, str]]:
        name = kind.removeprefix("chosen_").removeprefix("rejected_")
        told = self._templates[name].render(
            {_VARIABLES[name]: words if name == "random_sentence" else reference}
        )
        system = self._templates["system"].render()
        opening = [{"role": "system", "content": system}] if system else []
        return [*opening, {"role": "user", "content": told}]

    def _answer(
        self,
        kind: str,
        entry: Entry,
        messages: Sequence[Mapping[str, str]],
        attempt: int,
        words: int,
    ) -> Answer:
        settings = self.settings
        # a random sentence has no reference, so equal requests must differ by probe
        salt = entry.key if kind == "random_sentence" else 0
        drawn = text_key(f"{settings.seed}/{attempt}/{salt}/{messages[-1]['content']}")
        sampling: dict[str, Any] = {
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "seed": drawn % 2**31,
            "max_tokens": 32 + math.ceil(1.5 * words * settings.controls.max_ratio),
        }
        model = self.endpoint.settings.model
        key = request_key({"model": model, "messages": list(messages), **sampling})
        with self._in_flight(key):
            answer = self._cache.get(key)
            if answer is None or (answer.refused and settings.retry_refused):
                try:
                    answer = self.endpoint.complete(messages, sampling)
                except RefusedError:
                    self._cache.put(key, Answer("", True, 0, 0, refused=True))
                    raise
                self._cache.put(key, answer)
        if answer.refused:
            raise RefusedError("refused in an earlier run")
        return answer

    @contextmanager
    def _in_flight(self, key: str) -> Iterator[None]:
        """One thread at a time for one request: probes with the same text ask once."""
        with self._lock:
            lock, waiting = self._flights.get(key, (threading.Lock(), 0))
            self._flights[key] = lock, waiting + 1
        try:
            with lock:
                yield
        finally:
            with self._lock:
                lock, waiting = self._flights.pop(key)
                if waiting > 1:
                    self._flights[key] = lock, waiting - 1

    def _similarity(self, kind: str, reference: str, text: str) -> float | None:
        if self._embedder is None or not kind.endswith("_semantic"):
            return None
        try:
            one, other = (self._vector(item) for item in (reference, text))
        except NoAnswerError:
            return None
        norm = math.sqrt(sum(x * x for x in one) * sum(x * x for x in other))
        return math.fsum(a * b for a, b in zip(one, other, strict=True)) / norm

    def _vector(self, text: str) -> Sequence[float]:
        assert self._embedder is not None
        key = request_key({"embedding": self._embedder.settings.model, "text": text})
        vector = self._cache.vector(key)
        if vector is None:
            (vector,) = self._embedder.embed([text])
            self._cache.put_vector(key, vector)
        return vector
