"""``ldeval probes build`` and ``check`` as commands, offline."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ldeval.cli import main
from ldeval.probes import read_probes
from ldeval.records import KIND_NAMES
from tests.tiny import save_tiny

OFFLINE = {
    "chosen",
    "rejected",
    "irrelevant_train",
    "irrelevant_test",
    "permuted",
    "random_words",
}


def run(*arguments: object) -> int:
    return main(["-q", "probes", *map(str, arguments)])


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    rows = [
        {
            "q": f"Question {n}?",
            "good": f"Bakers quickly mixed flour number{n} in several large bowls.",
            "bad": f"Nobody here remembers anything about question{n} any longer.",
        }
        for n in range(40)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


FIELDS = ("--prompt-field", "q", "--chosen-field", "good", "--rejected-field", "bad")


def test_an_offline_set_from_all_of_the_authors_prompts(
    hh_probes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "hh.jsonl"
    assert run("build", hh_probes, "-o", out, "--match-length") == 0
    probes = read_probes(out)
    assert len(probes) == 500
    assert set(probes.kinds()) == OFFLINE
    assert run("check", out, "--html", tmp_path / "c.html") == 0
    text = capsys.readouterr().out
    for confound in ("leading whitespace", "end otherwise", "a trained probe's chosen",
                     "equal their own", "that are empty"):  # fmt: skip
        assert confound not in text


def test_a_set_is_built_from_named_fields_checked_and_exported(
    pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sentences = tmp_path / "s.txt"
    sentences.write_text("".join(f"Pool sentence {n} is here.\n" for n in range(200)))
    out, folder = tmp_path / "p.jsonl", tmp_path / "dataset"
    options = (*FIELDS, "--heldout-fraction", "0.3", "--rule-format", "--sentences",
               sentences, "--seed", "3")  # fmt: skip
    assert run("build", pairs, "-o", out, *options) == 0
    assert "trained and" in capsys.readouterr().out
    assert run("build", pairs, "-o", folder, *options) == 0
    one, other = read_probes(out), read_probes(folder)
    assert one.content_hash == other.content_hash
    assert "chosen_format" in one.kinds()
    capsys.readouterr()
    numbers = tmp_path / "n.json"
    assert run("check", folder, "--json", numbers) == 0
    assert "format variants made by a rule" in capsys.readouterr().out
    codes = {f["code"] for f in json.loads(numbers.read_text())["findings"]}
    assert {"made by a rule", "few probes"} <= codes
    assert run("check", folder, "--strict") == 1
    assert main(["validate", str(folder)]) == 0
    assert run("export", out, "-o", tmp_path / "again") == 0
    assert read_probes(tmp_path / "again").content_hash == one.content_hash


def test_initial_is_sampled_by_a_given_checkpoint(pairs: Path, tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "model")
    options = (*FIELDS, "--limit", "4", "2", "--initial-model", model,
               "--initial-tokens", "12")  # fmt: skip
    outputs = [tmp_path / name for name in ("a.jsonl", "b.jsonl")]
    for out in outputs:
        assert run("build", pairs, "-o", out, *options, "--initial-greedy") == 0
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
    probes = read_probes(outputs[0])
    assert len(probes) == 6
    assert sum("initial" in p.responses for p in probes) >= 5
    for probe in probes:
        if "initial" in probe.responses:
            assert probe.responses["initial"].source == "sampled"
            assert set(probe.meta["initial_model"]) == {"weights", "tokenizer"}
    assert any("initial_greedy" in p.meta for p in probes)
    assert "initial_greedy" not in KIND_NAMES


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("build", "no-such.jsonl"), "does not exist"),
        (("build", "{pairs}"), "none of 40 rows gives an example"),
        (("build", "{pairs}", *FIELDS, "--rephraser", "http://127.0.0.1:9/v1"),
         "name its model too"),
        (("build", "{pairs}", *FIELDS, "--rephraser", "http://127.0.0.1:9/v1",
          "--rephraser-model", "m"), "cannot be reached"),
        (("build", "{pairs}", *FIELDS, "--initial-model", "no-such-model"),
         "no-such-model"),
        (("build", "{pairs}", *FIELDS, "--tokenizer", "no-such-model"), "is not there"),
        (("build", "{pairs}", *FIELDS, "--sentences", "no.txt"), "cannot be read"),
        (("build", "{pairs}", *FIELDS, "--rephraser", "http://127.0.0.1:9/v1",
          "--rephraser-model", "m", "--length-band", "1.5", "2"), "must hold 1"),
        (("build", "{pairs}", *FIELDS, "--rephraser-model", "m", "--retry-refused"),
         "--rephraser-model, --retry-refused without --rephraser"),
        (("build", "{pairs}", *FIELDS, "--initial-greedy", "--initial-tokens", "9"),
         "--initial-greedy, --initial-tokens without --initial-model"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_says_why_and_leaves_nothing(
    pairs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    out = tmp_path / "out" / "p.jsonl"
    given = [argument.replace("{pairs}", str(pairs)) for argument in arguments]
    assert run(*given, "-o", out) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()
    assert not list(out.parent.glob(".ldeval-*"))


def test_no_output_replaces_what_it_is_made_of(
    pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = pairs.read_bytes()
    other = tmp_path / "other.jsonl"
    other.write_bytes(before)
    link = tmp_path / "link.jsonl"
    link.symlink_to(pairs)
    for output, arguments in (
        (pairs, ("build", pairs, *FIELDS)),
        (link, ("build", pairs, *FIELDS)),
        (pairs, ("build", other, "--heldout", pairs, *FIELDS)),
        (pairs, ("import", pairs, "--format", "reference")),
    ):
        assert run(*arguments, "-o", output) == 2
        assert "would be replaced by what is made of it" in capsys.readouterr().err
        assert pairs.read_bytes() == before
    assert run("build", other, "-o", tmp_path / "new.jsonl", *FIELDS) == 0


@pytest.mark.parametrize(
    "option",
    [
        ("--match-length", "0.5"),
        ("--match-length", "nan"),
        ("--heldout-fraction", "1.5"),
        ("--heldout-fraction", "some"),
        ("--limit", "-1", "2"),
        ("--max-chars", "0"),
        ("--tries", "0"),
        ("--retries", "-1"),
        ("--timeout", "-1"),
        ("--requests-per-minute", "0"),
    ],
)
def test_an_option_out_of_its_range_is_refused(
    pairs: Path, option: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run("build", pairs, "-o", "x.jsonl", *option)
    said = capsys.readouterr().err
    assert option[0] in said
    assert option[1] in said
    assert "invalid _" not in said
