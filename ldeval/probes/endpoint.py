"""Ask an OpenAI-compatible endpoint: paced, retried, counted.

The ``openai`` client does the transport and its retries (connections, 408, 409, 429 and
5xx, with the server's Retry-After); here are what it leaves open: a pace that holds for
retries too, answers that are no answers, and which failures are final.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin

from ldeval.errors import EndpointError, MissingExtraError
from ldeval.probes.answers import Answer
from ldeval.redact import redact_url

FAILURES_IN_A_ROW = 20
"""Requests that fail one after the other before the endpoint is given up."""
REFUSALS = (400, 413, 422)
"""Status codes by which an endpoint refuses a request for what it holds."""
MALFORMED_TRIES = 3
"""How often an answer that cannot be read is asked for again."""


@dataclass(frozen=True)
class EndpointSettings:
    """Where to ask, and how hard."""

    url: str
    """Base address, up to and including ``/v1``."""
    model: str
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable of the key; a local server needs none."""
    concurrency: int = 8
    requests_per_minute: float | None = None
    """Counts every attempt, retries too; None sets no pace."""
    retries: int = 6
    timeout: float = 120.0
    """Seconds a request may take."""


@dataclass
class Usage:
    """What was asked in this run; what came from the cache costs nothing."""

    requests: int = 0
    """Answers that were asked for and came."""
    attempts: int = 0
    """HTTP requests sent, retries included."""
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def cost(self, prices: tuple[float, float]) -> float:
        """In the currency of ``prices``: per million prompt and completion tokens."""
        return (
            self.prompt_tokens * prices[0] + self.completion_tokens * prices[1]
        ) / 1e6


class NoAnswerError(Exception):
    """One request stays without an answer; the others go on. Never leaves probes."""


class RefusedError(NoAnswerError):
    """The endpoint refuses this very request, and would again: too long, say."""


class _Pace:
    """Hands out starting times, so many a minute."""

    def __init__(self, per_minute: float | None) -> None:
        self._gap = 60.0 / per_minute if per_minute else 0.0
        self._next = 0.0
        self._lock = threading.Lock()

    def reserve(self) -> float:
        """The next starting time, on the monotonic clock; nobody else gets it."""
        with self._lock:
            start = max(self._next, time.monotonic())
            self._next = start + self._gap
        return start

    def wait(self) -> None:
        """Sleep until the next starting time."""
        time.sleep(max(0.0, self.reserve() - time.monotonic()))


class Endpoint:
    """One model behind an endpoint; safe to use from several threads."""

    def __init__(self, settings: EndpointSettings) -> None:
        """Raises:
        MissingExtraError: when the ``openai`` package is absent.
        """
        try:
            import openai
        except ImportError as error:
            raise MissingExtraError("openai", "rephrase") from error
        self.settings = settings
        self.usage = Usage()
        self._openai = openai
        self._pace = _Pace(settings.requests_per_minute)
        self._lock = threading.Lock()
        self._in_a_row = 0
        self._greeted = False
        self._client = openai.OpenAI(
            base_url=settings.url,
            api_key=os.environ.get(settings.key_variable) or "none",
            max_retries=settings.retries,
            timeout=settings.timeout,
            http_client=openai.DefaultHttpxClient(
                event_hooks={"request": [self._before_attempt]},
                timeout=settings.timeout,
                # texts and key go to no address but the one that was given
                follow_redirects=False,
            ),
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _before_attempt(self, _request: Any) -> None:
        self._pace.wait()
        with self._lock:
            self.usage.attempts += 1

    def complete(
        self, messages: Sequence[Mapping[str, str]], sampling: Mapping[str, Any]
    ) -> Answer:
        """One chat completion.

        Args:
            sampling: ``temperature``, ``top_p``, ``seed``, ``max_tokens``.

        Raises:
            EndpointError: when nothing can be had from this endpoint.
            NoAnswerError: when this request alone has no answer.
        """
        self._greet()
        reason = ""
        for _ in range(MALFORMED_TRIES):
            response = self._call(
                self._client.chat.completions.create,
                model=self.settings.model,
                messages=list(messages),
                **sampling,
            )
            answer = _answer(response)
            if answer is not None:
                self._succeeded(answer.prompt_tokens, answer.completion_tokens)
                return answer
            reason = "its answer cannot be read"
        raise self._failure(reason)

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """One vector for each text.

        Raises:
            EndpointError, NoAnswerError: as :meth:`complete`.
        """
        self._greet()
        for _ in range(MALFORMED_TRIES):
            response = self._call(
                self._client.embeddings.create,
                model=self.settings.model,
                input=list(texts),
                encoding_format="float",
            )
            try:
                vectors = [[float(x) for x in item.embedding] for item in response.data]
                tokens = int(response.usage.prompt_tokens)
            except (AttributeError, TypeError, ValueError):
                continue
            if len(vectors) == len(texts) and all(vectors):
                self._succeeded(tokens, 0)
                return vectors
        raise self._failure("its embeddings cannot be read")

    def _greet(self) -> None:
        """Before the first request: is anybody there, and is the key good?

        Raises:
            EndpointError: at once, instead of after every retry of every request.
        """
        with self._lock:
            if self._greeted:
                return
            self._greeted = True
        openai = self._openai
        try:
            self._client.with_options(max_retries=1).models.list()
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise self._hopeless(f"refuses the key ({error.status_code})") from error
        except openai.APIConnectionError as error:
            raise self._hopeless(f"cannot be reached ({error.__cause__})") from error
        except (openai.OpenAIError, ValueError):
            return  # many servers do not list models; the first request will tell

    def _call(self, method: Any, **arguments: Any) -> Any:
        """One request with its retries; None where the answer is no JSON."""
        openai = self._openai
        try:
            return method(**arguments)
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise self._hopeless(f"refuses the key ({error.status_code})") from error
        except openai.NotFoundError as error:
            raise self._hopeless(
                f"knows no model {self.settings.model!r} at this address ({error})"
            ) from error
        except openai.APIStatusError as error:
            if 300 <= error.status_code < 400:
                raise self._elsewhere(error.response) from error
            reason = f"status {error.status_code}: {error}"
            failure = self._failure(reason)
            if error.status_code in REFUSALS and isinstance(failure, NoAnswerError):
                failure = RefusedError(reason)
            raise failure from error
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            raise self._failure(f"{type(cause).__name__}: {cause}") from error
        except (openai.OpenAIError, ValueError):
            return None

    def _succeeded(self, prompt_tokens: int, completion_tokens: int) -> None:
        with self._lock:
            self._in_a_row = 0
            self.usage.requests += 1
            self.usage.prompt_tokens += prompt_tokens
            self.usage.completion_tokens += completion_tokens

    def _failure(self, reason: str) -> Exception:
        """One request failed; too many in a row are the endpoint's failure."""
        with self._lock:
            self._in_a_row += 1
            hopeless = self._in_a_row >= FAILURES_IN_A_ROW
        if hopeless:
            return self._hopeless(
                f"failed {FAILURES_IN_A_ROW} times in a row, the last time with "
                f"{reason[:300]}"
            )
        return NoAnswerError(reason)

    def _elsewhere(self, response: Any) -> EndpointError:
        """A redirect is told, not followed."""
        target = response.headers.get("Location", "nowhere")
        with contextlib.suppress(ValueError):  # else it is no address
            target = urljoin(self.settings.url, target)
        return self._hopeless(
            f"answers {response.status_code} and redirects to {redact_url(target)!r}; "
            "texts and key are sent to no address but yours: if you trust that one, "
            "give it instead"
        )

    def _hopeless(self, what: str) -> EndpointError:
        return EndpointError(
            f"{redact_url(self.settings.url)}: the endpoint {what}. Check --rephraser, "
            f"--rephraser-model and the key in {self.settings.key_variable}; then run "
            "the same command again: answers that came are kept."
        )


def _answer(response: Any) -> Answer | None:
    """The first choice of a completion; None where it is not one.

    The client does not check what it parses, so neither a field nor its type is sure.
    """
    try:
        choice = response.choices[0]
        text = choice.message.content
        finish = choice.finish_reason
    except (AttributeError, TypeError, IndexError):
        return None
    if text is None:
        text = ""
    if not isinstance(text, str):
        return None
    usage = getattr(response, "usage", None)
    tokens = [getattr(usage, f"{side}_tokens", 0) for side in ("prompt", "completion")]
    prompt, completion = (n if isinstance(n, int) else 0 for n in tokens)
    return Answer(text, finish != "length", prompt, completion)
