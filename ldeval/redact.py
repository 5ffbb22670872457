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

# Every pattern starts where a run of its first characters does, and what may fail after
# a long look is bounded: the time that a text takes grows as the text does.
_USER = re.compile(
    r"(?<=[a-z0-9+.\-]://)"
    # all before the last @ of the authority; where that holds user:password, before
    # the last @ of the path too, since a password may have a slash in it
    r"(?:(?:[^/?#\s:]*:[^/?#\s]*@|[^/?#\s@:]*:(?!\d+[/?#])[^\s@]{0,1000}@)"
    r"(?:(?:(?!://)[^?#\s]){0,1000}@)?|[^/?#\s]*@)",
    re.IGNORECASE,
)
_BARE_USER = re.compile(r"(?<![\w./:@%+\-])[\w.%+\-]+:[^\s@/\"']{6,300}@(?=[\w\[])")
"""``user:password@`` of an address whose scheme somebody took away."""
_NAME = re.compile(
    r"(?<![\w.\-])"
    r"(?=[\w.\-]*(?:key|token|secret|pass|auth|cred|sig|bearer|cookie))[\w.\-]+",
    re.IGNORECASE,
)
"""What may be a secret's name: others are passed over, and not what follows them."""
_SIGN = r"(?P<sign>\\*[\"']?\]?\s*(?:=>|:=|[=:](?!=)))\s*"
_TEXT = (
    r"[bru]{0,2}(?P<quote>\\{0,8}[\"'])(?P<value>(?:(?!(?P=quote))(?:\\.|[^\\\n]))++)"
)
_ITEMS = r"(?:\"(?:\\.|[^\"\\\n])*+\"?|'(?:\\.|[^'\\\n])*+'?|[^\])}\"'\n])++"
_VALUES = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"{_SIGN}{_TEXT}",
        rf"{_SIGN}[(\[{{]+(?=[bru]{{0,2}}\\*[\"'])(?P<value>{_ITEMS})",
        rf"{_SIGN}(?!\\*[\"'])"
        r"(?P<value>(?:(?:bearer|basic)\s+)?[^\s&#,;=\"'()\[\]{}<>]+=*)",
    )
)
"""What follows a name and a sign: a text in quotes, a list of such, or a word."""
_LINE = re.compile(r"(?P<sign>\s*:)\s*(?P<value>(?![\"'(\[{])\S[^\n]*)")
"""What follows the name of a header whose value has several words."""
_ARGUMENT = re.compile(
    r"(?P<sign>(?:\\*[\"']\s*,)?\s+)(?P<value>\"[^\"\n]*+\"?|'[^'\n]*+'?|[^\s\-\"']\S*)"
)
"""What follows an option, on a command line or in a list of arguments."""
_SECOND = re.compile(rf"(?P<sign>\\*[\"']\s*,)\s*{_TEXT}(?P=quote)\s*[)\]]", re.I)
_FIRST = re.compile(r"[(\[][bru]{0,2}\\{0,4}[\"']\Z", re.IGNORECASE)
"""What stands before the name in ``('api_key', '…')``, and after it."""
_HEADER = re.compile(r"(?:authorization|cookie)\Z", re.IGNORECASE)
_VARIABLE = re.compile(r"[A-Z_]+\W*")
"""What an option takes, as a usage line spells it; or the name of a variable."""
_SHAPES = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|hf_(?:oauth|jwt)_[\w.\-]{8,}|sk-[A-Za-z0-9_\-]{16,}"
    r"|(?:AKIA|ASIA)[A-Z0-9]{16}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,})"
    r"|(?<=\bBearer )[\w\-.~+/]{8,}=*"
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
    """An address without user, password and the secrets in its query and fragment.

    Text that is no URL, a path of a disk say, comes back as it is.
    """
    if "://" not in url:
        return url
    shown = _USER.sub(f"{HIDDEN}@", url)
    mark = re.search(r"[?#]", shown)
    query = mark.end() if mark else len(shown)
    return shown[:query] + _without_named(shown[query:])


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
    text = _USER.sub(f"{HIDDEN}@", text)
    text = _BARE_USER.sub(f"{HIDDEN}@", text)
    return _SHAPES.sub(HIDDEN, _without_named(text))


def _without_named(text: str) -> str:
    """Text without the values that follow the name of a secret."""
    parts, at = [], 0
    for found in _NAME.finditer(text):
        if found.start() < at or not _names_secret(text, found):
            continue
        value = _value(text, found)
        if value is not None:
            parts += [text[at : value.start("value")], HIDDEN]
            at = value.end("value")
    return "".join([*parts, text[at:]])


def _names_secret(text: str, found: re.Match[str]) -> bool:
    name = found.group()
    if is_secret_name(name):
        return True
    # a line break that is spelled as \n, before a name
    before = text[max(0, found.start() - 1) : found.start()]
    return before == "\\" and is_secret_name(name[1:])


def _value(text: str, found: re.Match[str]) -> re.Match[str] | None:
    """What is to be hidden after a name, if anything is."""
    name, end = found.group(), found.end()
    patterns = _VALUES
    if _HEADER.search(name):
        patterns = (_LINE, *patterns)
    if _FIRST.search(text[max(0, found.start() - 8) : found.start()]):
        patterns = (*patterns, _SECOND)
    if name.startswith("-"):
        patterns = (*patterns, _ARGUMENT)
    value = next((m for p in patterns if (m := p.match(text, end))), None)
    return None if value is None or _is_harmless(name, value) else value


def _is_harmless(name: str, found: re.Match[str]) -> bool:
    sign, value = found.group("sign", "value")
    if all(not item or _PLAIN.fullmatch(item) for item in _items(value)):
        return True
    if found.re is _ARGUMENT:
        return _VARIABLE.fullmatch(value) is not None
    # a sentence: "by token: less", "field 'key': is missing"
    bare = name.strip("-.").lower() in ("token", "key")
    return bare and "=" not in sign and len(value) < SHORTEST


def _items(value: str) -> list[str]:
    return [item.strip(" \t\"'") for item in value.split(",")]
