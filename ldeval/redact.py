"""Takes credentials out of what is stored, logged or printed.

Apart from everything that stores and prints, since one place must know what a secret
looks like. A secret is replaced by ``***``, always the same, so that settings which
were redacted can still be compared: a sweep goes on with another key, not without one.

What cannot be known here is a secret in a probe's text or in the name of a folder:
those are data, and are kept as they came.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

HIDDEN = "***"
SHORTEST = 8
"""Characters of the shortest value of the environment that is searched for in text:
a key of ``none`` or ``EMPTY`` is no secret, and the word stands in many sentences."""

_SECRET_WORDS = frozenset(
    {
        "apikey",
        "authorization",
        "bearer",
        "cookie",
        "credential",
        "credentials",
        "passphrase",
        "passwd",
        "password",
        "secret",
        "sig",
        "signature",
    }
)
_NOT_SECRET = frozenset(
    {
        # tokens of a vocabulary, keys of a table
        *("bos", "cls", "eos", "image", "mask", "pad", "sep", "special", "stop", "unk"),
        *("column", "foreign", "primary", "sort"),
    }
)
"""Words before ``token`` or ``key`` that make them something else than a secret."""
_PLAIN = re.compile(
    r"true|false|none|null|auto|[+\-]?\d{1,6}(?:\.\d+)?|\*+", re.IGNORECASE
)
"""Values that say whether or how many, not which: ``use_auth_token=True``."""

_USER = re.compile(
    r"(?P<scheme>\b[a-z][a-z0-9+.\-]*://)"
    # all before the last @ of the authority; or user:password with a slash in it
    r"(?:[^/?#\s]*@|[^/?#\s@:]*:(?!\d+[/?#])[^\s@]*@)",
    re.IGNORECASE,
)
_BARE_USER = re.compile(r"(?<![\w./:@])[\w.%+\-]+:[^\s@/\"']{6,}@(?=[\w\[])")
"""``user:password@`` of an address whose scheme somebody took away."""
_PAIR = re.compile(
    # names that cannot be a secret's are passed over, and not what follows them
    r"(?P<name>\b(?=[\w\-.]*(?:key|token|secret|pass|auth|cred|sig|bearer|cookie))"
    r"[a-z][\w\-.]*)(?P<between>[\"']?\s?[=:]\s?[\"']?)"
    r"(?P<value>(?:(?:bearer|basic)\s+)?[^\s&#,;=\"'()\[\]{}<>]+=*)",
    re.IGNORECASE,
)
_SHAPES = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_\-]{16,}|(?:AKIA|ASIA)[A-Z0-9]{16}"
    r"|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,})|(?<=\bBearer )[\w\-.~+/]{8,}=*"
)
"""Keys that services give a form of their own, wherever they stand."""


def is_secret_name(name: str) -> bool:
    """Whether a setting, a header or a variable of this name holds a secret."""
    parts = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    words = [word for word in re.split(r"[^a-z0-9]+", parts.lower()) if word]
    if _SECRET_WORDS.intersection(words):
        return True
    if not words or words[-1] not in ("token", "key"):
        return False
    return not _NOT_SECRET.intersection(words[:-1])


def redact_url(url: str) -> str:
    """An address without user, password and the secrets in its query.

    Text that is no URL, a path of a disk say, comes back as it is.
    """
    if "://" not in url:
        return url
    place, mark, query = _USER.sub(rf"\g<scheme>{HIDDEN}@", url).partition("?")
    return place + mark + _PAIR.sub(_hide_pair, query)


def redact_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by name with the secrets among them hidden, at any depth.

    Numbers, truth values and None stay under any name; so do tokens of a vocabulary
    (``eos_token``). Texts elsewhere lose what :func:`redact_url` takes out.
    """
    return {name: _redacted(str(name), value) for name, value in settings.items()}


def _redacted(name: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return redact_settings(value)
    if isinstance(value, list | tuple):
        return type(value)(_redacted(name, item) for item in value)
    if not isinstance(value, str):
        return value
    if is_secret_name(name) and value and not _PLAIN.fullmatch(value):
        return HIDDEN
    return _SHAPES.sub(HIDDEN, redact_url(value))


def environment_secrets(
    environment: Mapping[str, str], also: Iterable[str] = ()
) -> tuple[str, ...]:
    """Values of secret-looking variables, longest first: what no text may hold.

    Args:
        also: names of further variables that hold a secret.
    """
    names = set(also)
    found = {
        value
        for name, value in environment.items()
        if (name in names or is_secret_name(name)) and len(value) >= SHORTEST
    }
    return tuple(sorted(found, key=len, reverse=True))


def redact_text(text: str, secrets: Iterable[str] = ()) -> str:
    """A sentence or a log line without the secrets in it.

    The last line of defence, for text that others composed: messages of libraries,
    tracebacks, a command line.

    Args:
        secrets: values that are known to be secret, longest first.
    """
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    text = _USER.sub(rf"\g<scheme>{HIDDEN}@", text)
    text = _BARE_USER.sub(f"{HIDDEN}@", text)
    return _SHAPES.sub(HIDDEN, _PAIR.sub(_hide_pair, text))


def _hide_pair(match: re.Match[str]) -> str:
    name, between, value = match.group("name", "between", "value")
    if not is_secret_name(name) or _PLAIN.fullmatch(value):
        return match.group()
    if ":" in between and name.lower() in ("token", "key") and len(value) < SHORTEST:
        return match.group()  # a sentence: "by token: less", "field 'key': is missing"
    return f"{name}{between}{HIDDEN}"
