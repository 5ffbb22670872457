"""``ldeval probes build``: from preference data to a probe set, in one command."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldeval.commands import Noted, add_command, keep_sources, whole_number
from ldeval.commands.output import say
from ldeval.errors import MismatchError
from ldeval.files import named, write_whole

if TYPE_CHECKING:  # heavy to import: only for the types
    from ldeval.probes.answers import AnswerCache
    from ldeval.probes.build import Build, BuildSettings, Sampler
    from ldeval.probes.rephrase import Rephraser


def add_build_command(commands: Any) -> None:
    """Add ``probes build``."""
    command = add_command(
        commands, "build", _build, "make a probe set out of preference data"
    )
    command.add_argument(
        "source",
        metavar="SOURCE",
        help="JSONL, JSON, CSV or Parquet file, a folder of them, a saved dataset, or "
        "the name of a dataset",
    )
    command.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        help="a .jsonl file; any other name becomes a dataset folder",
    )
    _add_input(command.add_argument_group("prompts"))
    _add_offline(command.add_argument_group("kinds made without a model"))
    _add_rephraser(command.add_argument_group("kinds written by a model"))
    _add_initial(command.add_argument_group("initial responses"))


def _add_input(group: Any) -> None:
    group.add_argument("--split", default="train", help="of a dataset with several")
    group.add_argument("--heldout", metavar="SOURCE", help="prompts not trained on")
    group.add_argument("--heldout-split", default="test")
    group.add_argument(
        "--heldout-fraction",
        type=_share,
        default=0.1,
        metavar="SHARE",
        help="of the conversations, held out by seed (default 0.1); leave these out "
        "of training, too",
    )
    for name in ("prompt", "chosen", "rejected"):
        group.add_argument(
            f"--{name}-field", metavar="NAME", help="dots go deeper: doc.question"
        )
    group.add_argument(
        "--limit",
        type=whole_number(),
        nargs=2,
        metavar=("TRAINED", "HELDOUT"),
        default=None,
    )
    group.add_argument(
        "--sample",
        action="store_true",
        help="draw the limited probes over the whole source, not the first",
    )
    group.add_argument("--seed", type=int, default=0)
    group.add_argument(
        "--max-chars",
        type=whole_number(1),
        default=20_000,
        help="longest response (20000)",
    )


def _add_offline(group: Any) -> None:
    group.add_argument(
        "--match-length",
        type=_ratio,
        nargs="?",
        const=1.25,
        metavar="RATIO",
        help="bring token counts within RATIO (1.25) of chosen's by choice and cutting",
    )
    group.add_argument(
        "--tokenizer", metavar="DIR", help="that measures lengths; words without it"
    )
    group.add_argument(
        "--sentences", metavar="FILE", help="a pool for random_sentence, one a line"
    )
    group.add_argument(
        "--rule-format",
        action="store_true",
        help="format variants by exchanging content words, marked as such",
    )


def _add_rephraser(group: Any) -> None:
    group.add_argument("--rephraser", metavar="URL", help="OpenAI-compatible, …/v1")
    add = partial(group.add_argument, action=Noted)
    add("--rephraser-model", metavar="NAME")
    add(
        "--rephraser-key",
        default="OPENAI_API_KEY",
        metavar="VARIABLE",
        help="environment variable that holds the key",
    )
    add(
        "--instructions",
        type=Path,
        metavar="TOML",
        help="other instructions: system, semantic, format, random_sentence",
    )
    add("--cache", type=Path, metavar="FILE", help="of answers (OUTPUT.answers.sqlite)")
    add("--concurrency", type=whole_number(1), default=8)
    add("--requests-per-minute", type=_amount)
    add("--timeout", type=_amount, default=120.0, metavar="SECONDS")
    add("--retries", type=whole_number(), default=6)
    add(
        "--tries",
        type=whole_number(1),
        default=3,
        help="answers asked for (3) a response",
    )
    add(
        "--retry-refused",
        nargs=0,
        const=True,
        default=False,
        help="ask again what the endpoint refused (status 400) in an earlier run",
    )
    add("--temperature", type=float, default=0.7)
    add("--min-distance", type=float, default=0.1)
    add(
        "--length-band",
        type=float,
        nargs=2,
        default=(0.5, 2.0),
        metavar=("LOW", "HIGH"),
    )
    add(
        "--price",
        type=float,
        nargs=2,
        metavar=("IN", "OUT"),
        help="per million tokens, to show the cost",
    )
    add("--embedding-model", metavar="NAME", help="scores similarity")
    add("--embedding-url", metavar="URL", help="default: --rephraser")


def _add_initial(group: Any) -> None:
    group.add_argument(
        "--initial-model", metavar="DIR", help="the model before training"
    )
    add = partial(group.add_argument, action=Noted)
    add("--initial-backend", default="hf", help="harness model type")
    add("--initial-args", default="", help="its --model_args")
    add("--initial-tokens", type=whole_number(1), default=128)
    add(
        "--initial-greedy",
        nargs=0,
        const=True,
        default=False,
        help="keep the greedy response as well, in meta.initial_greedy",
    )


def _check_given(options: argparse.Namespace) -> None:
    """Refuse options that would have no effect: the model that they are of is missing.

    Raises:
        MismatchError: naming them, and what is missing.
    """
    given = getattr(options, "given", ())
    initial = [name for name in given if name.startswith("--initial-")]
    for names, needed, model in (
        ([n for n in given if n not in initial], "--rephraser", options.rephraser),
        (initial, "--initial-model", options.initial_model),
    ):
        if names and model is None:
            raise MismatchError(
                f"{', '.join(names)} without {needed}, which would have no effect. Add "
                f"{needed}, or leave it out."
            )


def _number(text: str) -> float:
    """NaN where it is none, which is in no range."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _share(text: str) -> float:
    value = _number(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not in [0, 1)")
    return value


def _ratio(text: str) -> float:
    value = _number(text)
    if not 1 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 1")
    return value


def _amount(text: str) -> float:
    value = _number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


# ---------------------------------------------------------------------------- running


def _build(options: argparse.Namespace) -> int:
    from ldeval.probes.answers import AnswerCache
    from ldeval.probes.build import Build
    from ldeval.report.probe_tables import build_text, usage_text

    output: Path = options.output
    _check_given(options)
    keep_sources(output, options.source, options.heldout, options.sentences)
    with named(output.parent):
        output.parent.mkdir(parents=True, exist_ok=True)
    prices = None if options.price is None else tuple(options.price)
    with ExitStack() as stack:
        rephraser = cache = status = None
        if options.rephraser is not None:
            name = options.cache or output.with_name(output.name + ".answers.sqlite")
            cache = stack.enter_context(AnswerCache(name))
            rephraser = _rephraser(options, cache)
            stack.callback(rephraser.close)

            def status() -> str:
                assert rephraser is not None
                assert cache is not None
                return usage_text(rephraser.endpoint.usage, cache.hits, prices)

        build = Build(
            _settings(options),
            work=output.parent,
            rephraser=rephraser,
            sampler=_sampler(options),
            status=status,
            progress=not options.quiet,
        )
        _write(build, output)
        record = build.report.to_record()
        listed = output.with_name(output.name + ".build.json")
        write_whole(listed, json.dumps(record, indent=1, ensure_ascii=False))
        say(f"{output}: {build_text(record)}")
        if status is not None:
            say(status())
        say(f"all counts: {listed}")
    return 0


def _settings(options: argparse.Namespace) -> BuildSettings:
    from ldeval.probes.build import BuildSettings
    from ldeval.probes.examples import FieldMap
    from ldeval.probes.lengths import LengthBand

    return BuildSettings(
        source=options.source,
        split=options.split,
        heldout=options.heldout,
        heldout_split=options.heldout_split,
        heldout_share=options.heldout_fraction,
        fields=FieldMap(
            options.prompt_field, options.chosen_field, options.rejected_field
        ),
        limits=None if options.limit is None else tuple(options.limit),
        sample=options.sample,
        seed=options.seed,
        max_chars=options.max_chars,
        band=None if options.match_length is None else LengthBand(options.match_length),
        tokenizer=options.tokenizer,
        sentences=options.sentences,
        rule_format=options.rule_format,
    )


def _rephraser(options: argparse.Namespace, cache: AnswerCache) -> Rephraser:
    from ldeval.errors import EndpointError
    from ldeval.probes.controls import Controls
    from ldeval.probes.endpoint import Endpoint, EndpointSettings
    from ldeval.probes.rephrase import (
        Instructions,
        Rephraser,
        RephraseSettings,
        read_instructions,
    )

    if options.rephraser_model is None:
        raise EndpointError(
            "--rephraser names an endpoint; name its model too, with --rephraser-model."
        )

    def endpoint(url: str, model: str) -> Endpoint:
        return Endpoint(
            EndpointSettings(
                url=url,
                model=model,
                key_variable=options.rephraser_key,
                concurrency=options.concurrency,
                requests_per_minute=options.requests_per_minute,
                retries=options.retries,
                timeout=options.timeout,
            )
        )

    embedder = None
    if options.embedding_model is not None:
        embedder = endpoint(
            options.embedding_url or options.rephraser, options.embedding_model
        )
    low, high = options.length_band
    settings = RephraseSettings(
        seed=options.seed,
        tries=options.tries,
        retry_refused=options.retry_refused,
        temperature=options.temperature,
        controls=Controls(
            min_distance=options.min_distance, min_ratio=low, max_ratio=high
        ),
        instructions=Instructions()
        if options.instructions is None
        else read_instructions(options.instructions),
    )
    return Rephraser(
        endpoint(options.rephraser, options.rephraser_model),
        cache,
        settings,
        embedder=embedder,
    )


def _sampler(options: argparse.Namespace) -> Sampler | None:
    if options.initial_model is None:
        return None
    from lm_eval.utils import simple_parse_args_string

    from ldeval.scoring.generate import InitialSampler

    return InitialSampler(
        options.initial_model,
        backend=options.initial_backend,
        model_args=simple_parse_args_string(options.initial_args),
        seed=options.seed,
        max_new_tokens=options.initial_tokens,
        greedy=options.initial_greedy,
    )


def _write(build: Build, output: Path) -> None:
    from ldeval.probes import write_probes
    from ldeval.report.probe_card import write_probe_dataset

    probes: Iterator[Any] = build.probes()
    if output.suffix == ".jsonl":
        write_probes(output, probes)
    else:
        write_probe_dataset(output, probes)
