"""Ask a server that speaks the OpenAI completions protocol, and hear what went wrong.

Apart from what is asked of it (:mod:`served`): here are the connection, the retries and
the words for every way in which a server can fail. Settings are those of the harness's
model. What authorises a request stands in no message.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit, urlunsplit

import aiohttp
from requests.utils import get_environ_proxies, select_proxy
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    stop_after_attempt,
    wait_exponential_jitter,
)
from urllib3.exceptions import InvalidHeader
from urllib3.util.retry import Retry

from ldeval.errors import ScoringError, UnsupportedBackendError
from ldeval.files import lenient_json

log = logging.getLogger(__name__)

T = TypeVar("T")

LARGEST_ANSWER = 2**24
"""Bytes of an answer, unpacked, beside those of its scores."""
SCORE_BYTES = 512
"""Bytes at most of one token's score in an answer: about a hundred, and more where the
token's text is long and escaped."""
EXCERPT = 300
"""Characters of an answer that a message shows."""
_TRANSIENT = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_KEY = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
_CANNOT = (
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.UNPROCESSABLE_ENTITY,
    HTTPStatus.NOT_IMPLEMENTED,
)


class RefusedError(ScoringError):
    """The server answers, and refuses this request; asking again would not help."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        """Of the answer, where there was one."""

    @property
    def cannot(self) -> bool:
        """Whether it is what was asked for that the server does not take."""
        return self.status in _CANNOT


class _TransientError(Exception):
    """A failure that may pass."""

    def __init__(self, message: str, after: float | None = None) -> None:
        super().__init__(message)
        self.after = after
        """Seconds that the server asks to wait."""


class Connection:
    """Posts to one server; used within ``async with``."""

    def __init__(self, lm: Any) -> None:
        """Read the settings of a ``local-completions`` model.

        Raises:
            UnsupportedBackendError: without an HTTP address or a key that the model
                needs.
        """
        url = lm.base_url or ""
        if urlsplit(url).scheme not in ("http", "https"):
            raise UnsupportedBackendError(
                f"base_url={shown_url(url)!r} is no HTTP address. Add base_url=http://"
                "HOST:PORT/v1/completions to the model arguments."
            )
        try:
            header = dict(lm.header)
        except ValueError as error:  # the harness's class for api.openai.com
            raise UnsupportedBackendError(str(error)) from error
        if not header.get("Authorization", "").removeprefix("Bearer").strip():
            header.pop("Authorization", None)  # the harness sends one without a key too
        if "Authorization" in header and "@" in urlsplit(url).netloc:
            raise UnsupportedBackendError(
                f"the address of {shown_url(url)} holds a user, and a key is set too "
                "(OPENAI_API_KEY). A request carries one of them: leave the other out."
            )
        self._url: str = url
        self.shown = shown_url(url)
        """The address as messages may show it."""
        self._header = {name: str(value).strip() for name, value in header.items()}
        self._secrets = _secrets(self._header, url)
        self._timeout = int(lm.timeout)
        self._attempts = max(1, int(lm.max_retries))
        self._proxy = _proxy(url)
        self._ssl = _verification(lm.verify_certificate, lm.ca_cert_path)
        self._session: aiohttp.ClientSession | None = None
        self.retried = 0
        """Requests sent again so far."""

    async def __aenter__(self) -> Connection:
        self._session = aiohttp.ClientSession(
            headers=self._header,
            timeout=aiohttp.ClientTimeout(total=self._timeout),
            connector=aiohttp.TCPConnector(limit=0, ssl=self._ssl),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def post(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to one request, which is sent again after failures that may pass.

        Raises:
            RefusedError: when the server refuses it.
            ScoringError: when no whole JSON object came; without the address.
        """
        retrying = AsyncRetrying(
            stop=stop_after_attempt(self._attempts),
            wait=self._wait,
            retry=retry_if_exception_type(_TransientError),
            before_sleep=self._say,
            reraise=True,
        )
        try:
            body: bytes = await retrying(self._once, payload)
        except _TransientError as error:
            times = f" ({self._attempts} times)" if self._attempts > 1 else ""
            raise ScoringError(
                f"{error}{times}. Is the server well, and strong enough for "
                "num_concurrent and batch_size? max_retries and timeout are model "
                "arguments."
            ) from error
        try:
            answer = lenient_json(body)
        except ValueError as error:
            raise ScoringError(
                f"the server's answer is not JSON: {self._excerpt(body)}"
            ) from error
        if not isinstance(answer, dict):
            raise ScoringError(
                f"the server's answer is not an object: {self._excerpt(body)}"
            )
        return answer

    async def _once(self, payload: Mapping[str, Any]) -> bytes:
        assert self._session is not None, "used outside async with"
        try:
            async with self._session.post(
                self._url, json=payload, proxy=self._proxy, allow_redirects=False
            ) as response:
                body = await _read(response, _most_bytes(payload))
                status, after = response.status, response.headers.get("Retry-After")
                target = response.headers.get("Location")
        except TimeoutError as error:
            raise _TransientError(
                f"no whole answer within {self._timeout} seconds"
            ) from error
        except aiohttp.InvalidURL as error:
            raise RefusedError("base_url is no valid address") from error
        except aiohttp.ClientError as error:
            text = self._redacted(str(error) or type(error).__name__)
            raise _TransientError(f"the connection failed: {text}") from error
        if status in _TRANSIENT or (status >= 500 and status not in _CANNOT):
            raise _TransientError(
                f"the server answers {status}: {self._excerpt(body)}", _seconds(after)
            )
        if 300 <= status < 400:
            raise RefusedError(self._elsewhere(status, target), status)
        if status != HTTPStatus.OK:
            raise RefusedError(
                f"the server refuses with {status}: {self._excerpt(body)}"
                + _remedy(status),
                status,
            )
        return body

    def _wait(self, state: RetryCallState) -> float:
        """Seconds: as the server says, up to the timeout; else ever longer."""
        error = None if state.outcome is None else state.outcome.exception()
        if isinstance(error, _TransientError) and error.after is not None:
            return min(error.after, float(self._timeout))
        return float(wait_exponential_jitter(initial=0.5, max=10, jitter=0.5)(state))

    def _say(self, state: RetryCallState) -> None:
        self.retried += 1
        error = None if state.outcome is None else state.outcome.exception()
        log.info("%s: %s; asked again", self.shown, error)

    def _elsewhere(self, status: int, target: str | None) -> str:
        """A redirect is told, not followed: texts and key would go to whom the server
        names."""
        if target is None:
            return f"the server answers {status}, a redirect to nowhere"
        try:
            place = self._redacted(shown_url(urljoin(self._url, target)))
        except ValueError:  # no address
            place = self._redacted(repr(target[:EXCERPT]))
        return (
            f"the server answers {status} and redirects to {place}; prompts and key "
            "are sent to no address but yours. If you trust that one, give it as "
            "base_url."
        )

    def _excerpt(self, body: bytes) -> str:
        text = self._redacted(body.decode("utf-8", "replace").strip())
        cut = text[:EXCERPT] + ("…" if len(text) > EXCERPT else "")
        return repr(cut) if cut else "nothing"

    def _redacted(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text


async def _read(response: aiohttp.ClientResponse, most: int) -> bytes:
    """The answer, as far as it is no larger than an honest one: a packed one of
    megabytes can hold gigabytes.

    Raises:
        RefusedError: it is larger.
    """
    body = bytearray()
    async for part in response.content.iter_chunked(2**16):
        body += part
        if len(body) > most:
            raise RefusedError(
                f"the server answers with more than {most:,} bytes, which is more than "
                "what was asked for can take. Is it a completions server?"
            )
    return bytes(body)


def _most_bytes(payload: Mapping[str, Any]) -> int:
    """Bytes that the answer to a request may have, unpacked."""
    prompt = payload.get("prompt", ())
    prompts = [prompt] if isinstance(prompt, str) else prompt
    new = payload.get("max_tokens") or 0
    # a text has no more tokens than characters, but for what few bytes spell
    tokens = sum(len(one) + new for one in prompts if isinstance(one, str | list))
    kept = max(payload.get("prompt_logprobs") or 0, payload.get("logprobs") or 0)
    return LARGEST_ANSWER + int(tokens * (1 + kept) * SCORE_BYTES)


def run(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run to the end, also where an event loop runs already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work())
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: asyncio.run(work())).result()


def shown_url(url: str) -> str:
    """An address without user, password and query, where secrets stand."""
    parts = urlsplit(url)
    return urlunsplit(
        (parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", "")
    )


def _secrets(header: Mapping[str, str], url: str) -> list[str]:
    """What must not be shown, longest first: values of the header, words in them, and
    what the address holds beside the place."""
    parts = urlsplit(url)
    found = {parts.netloc.rpartition("@")[0], parts.password or "", parts.query}
    for value in header.values():
        found |= {value, *value.split()}
    found -= {"Bearer", "Basic", "application/json"}
    return sorted((text for text in found if len(text) > 3), key=len, reverse=True)


def _proxy(url: str) -> str | None:
    """The environment's proxy for an address, as the harness takes it."""
    if urlsplit(url).hostname in _LOOPBACK:
        return None
    return select_proxy(url, get_environ_proxies(url))


def _verification(verify: Any, ca_path: str | None) -> ssl.SSLContext | bool:
    if not verify:
        return False
    if ca_path is None:
        return True
    try:
        return ssl.create_default_context(cafile=ca_path)
    except OSError as error:
        raise UnsupportedBackendError(
            f"ca_cert_path={ca_path}: no certificate can be read from it ({error})"
        ) from error


def _seconds(retry_after: str | None) -> float | None:
    """Seconds that a Retry-After header names, by number or by date."""
    if retry_after is None:
        return None
    try:
        return float(Retry().parse_retry_after(retry_after))
    except InvalidHeader:
        return None


def _remedy(status: int) -> str:
    if status in _KEY:
        return ". Set OPENAI_API_KEY, or give header to the model arguments."
    if status == HTTPStatus.NOT_FOUND:
        return (
            ". base_url must end in /v1/completions, and model be a name that the "
            "server knows."
        )
    return ""
