"""No credential is left in what is stored, logged or printed."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ldeval.redact import (
    HIDDEN,
    environment_secrets,
    is_secret_name,
    redact_settings,
    redact_text,
    redact_url,
)

SECRET = "n0t-f0r-any-eyes"


@pytest.mark.parametrize(
    "url",
    [
        f"s3://AKEY:{SECRET}@bucket/store",
        f"http://user:{SECRET}@host:8000/v1/completions",
        f"https://{SECRET}@host/v1",
        f"https://user:{SECRET}/with/slashes@host/v1",
        f"https://user:{SECRET}@with@host/v1",
        f"https://host/v1?api_key={SECRET}&model=x",
        f"https://host/a?X-Amz-Signature={SECRET}",
        f"https://account.example/c?sv=1&sig={SECRET}#part",
        f"https://host/p#access_token={SECRET}",
        f"https://user:p@ss/{SECRET}@host/v1",
    ],
)
def test_an_address_loses_its_secrets_and_keeps_its_place(url: str) -> None:
    for shown in (redact_url(url), redact_text(f"cannot reach {url}: refused")):
        assert SECRET not in shown
        assert HIDDEN in shown
    assert redact_url(redact_url(url)) == redact_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket/store@2/run:1",
        "http://127.0.0.1:8000/v1/completions",
        "http://host:8000/a@b",
        "https://host/v1?model=a&max_tokens=12",
        "/a/folder/with@sign",
        "relative/run:2",
    ],
)
def test_an_address_without_secrets_is_left_as_it_is(url: str) -> None:
    assert redact_url(url) == url


@pytest.mark.parametrize(
    "name",
    [
        "token",
        "hf_token",
        "api_key",
        "apiKey",
        "AWS_SECRET_ACCESS_KEY",
        "password",
        "Authorization",
        "auth_token",
        "OPENAI_API_KEY",
        "X-Api-Key",
        "client_secret",
    ],
)
def test_names_of_secrets_are_known(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "tokenizer",
        "max_tokens",
        "eos_token",
        "add_bos_token",
        "tokenized_requests",
        "PWD",
        "SSH_AUTH_SOCK",
        "dtype",
        "base_url",
        "pretrained",
        "n_tokens",
        "KEYS",
    ],
)
def test_names_of_other_things_are_not_taken_for_secrets(name: str) -> None:
    assert not is_secret_name(name)


def test_settings_are_redacted_at_any_depth_and_still_comparable() -> None:
    asked = {
        "model_args": {
            "token": SECRET,
            "base_url": f"http://u:{SECRET}@host/v1",
            "header": {"Authorization": f"Bearer {SECRET}", "X-Keys": ["a"]},
            "add_bos_token": "True",
            "use_auth_token": True,
            "dtype": "float32",
        },
        "top_k": 20,
    }
    shown = redact_settings(asked)
    assert SECRET not in repr(shown)
    assert shown["model_args"]["token"] == HIDDEN
    assert shown["model_args"]["base_url"] == f"http://{HIDDEN}@host/v1"
    assert shown["model_args"]["add_bos_token"] == "True"
    assert shown["model_args"]["use_auth_token"] is True
    assert shown["top_k"] == 20
    assert redact_settings(shown) == shown
    other = {"model_args": asked["model_args"] | {"token": "another-key"}}
    assert redact_settings(other)["model_args"] == shown["model_args"]


@pytest.mark.parametrize(
    "text",
    [
        f"--model_args pretrained=x,token={SECRET},dtype=float32",
        f"{{'api_key': '{SECRET}', 'n': 1}}",
        f'{{"Authorization": "Bearer {SECRET}"}}',
        f"Authorization: Bearer {SECRET}",
        "the key hf_abcdefghijklmnopqrstuvwx is not valid",
        "the key sk-proj-abcdefghijklmnopqrst is not valid",
        "AKIAABCDEFGHIJKLMNOP",
        f'Invalid bucket name "AKEY:{SECRET}@bucket"',
        f"unrecognized arguments: --api_key {SECRET}",
        f"Command '['serve', '--api-key', '{SECRET}']' failed",
        f"{{'api_key': ['abc', '{SECRET}'], 'n': 1}}",
        f"('api_key', '{SECRET}')",
        f"[(b'x-api-key', b'{SECRET}')]",
        f"'x-api-key': b'{SECRET}'",
        f'headers["x-api-key"] = "{SECRET}"',
        f'{{\\"api_key\\": \\"{SECRET}\\"}}',
        f"'password': 'of words, {SECRET} among them'",
        f"api_key  =  {SECRET}",
        f"api_key => {SECRET}",
        f"b'POST\\npassword: {SECRET}'",
        f"Authorization: Token {SECRET}",
        f'Authorization: Digest username="me", response="{SECRET}"',
        f"Cookie: theme=dark; session={SECRET}",
        "the key hf_oauth_abcdefghijklmnop.qr is not valid",
    ],
)
def test_text_of_libraries_loses_its_secrets(text: str) -> None:
    shown = redact_text(text)
    for secret in (SECRET, "abcdefghijklmnop", "ABCDEFGHIJKLMNOP"):
        assert secret not in shown
    assert HIDDEN in shown


def test_plain_sentences_are_left_as_they_are() -> None:
    for text in (
        "scored 12 responses, 340 tokens: done",
        "run.py:12: field 'key' is missing",
        "eos_token='<|end|>' and max_tokens=64, add_bos_token=True",
        "16:20 tokens=3",
        "nats per token: \N{MINUS SIGN}0.31, field 'key': is missing",
        "token: -1.2345678",
        "token 12 of 40, tokens: 431, n_tokens=5",
        "no API key: (set OPENAI_API_KEY)",
        "usage: [--rephraser-key NAME] [--token --verbose]",
        "columns ('token', 'step'), not 'key', only 'probe_id', 'kind'",
        "api_key=None, token: [1, 2], token_ids: ['abcdefghijk']",
    ):
        assert redact_text(text) == text


@pytest.mark.parametrize(
    "unit",
    [
        *("a-", "a+", "a%", "a-token-", "key ", "key = ", "key=1,", "--key ", "\\"),
        *('key: ["', "('key', '", '("key", \'', '\\"key\\": \\"', "key: ['\\'"),
        *("://", "a://u:", "a://u:p@", "a@b:", "a,a:bbbbbb,", "Cookie: ", "sk-"),
    ],
)
def test_the_time_that_a_text_takes_grows_as_the_text_does(unit: str) -> None:
    def seconds(length: int) -> float:
        text = unit * (length // len(unit))
        taken = []
        for _ in range(3):
            start = time.process_time()
            redact_text(text)
            taken.append(time.process_time() - start)
        return min(taken)

    # eight times the text: 8 where it grows so, 64 where it grows as the square
    assert seconds(12_000) < 30 * seconds(1_500)


def test_secrets_of_the_environment_are_found_by_name_and_hidden_in_any_text() -> None:
    environment = {
        "OPENAI_API_KEY": SECRET,
        "MY_OWN": f"{SECRET}-and-more",
        "HF_TOKEN": "none",
        "PWD": "/home/someone",
        "PATH": "/usr/bin:/bin",
    }
    secrets = environment_secrets(environment, ["MY_OWN"])
    assert secrets == (f"{SECRET}-and-more", SECRET)
    assert redact_text(f"got {SECRET}-and-more", secrets) == f"got {HIDDEN}"


@given(st.text(max_size=60), st.text(max_size=60))
def test_a_known_secret_is_never_left(before: str, after: str) -> None:
    assert SECRET not in redact_text(before + SECRET + after, [SECRET])


@given(st.text(max_size=80))
def test_redacting_a_url_twice_changes_nothing_more(text: str) -> None:
    once = redact_url(f"https://{text}")
    assert redact_url(once) == once
