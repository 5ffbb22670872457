"""ldeval: what fine-tuning does to a language model's beliefs.

    import ldeval

    table = ldeval.score("path/to/model", "probes.jsonl")    # one model
    run = ldeval.load_run("store/my-run")                     # a sweep's tables
    comparison = ldeval.diff(run)                             # what changed
    comparison.to_pandas()

Importing ldeval imports nothing heavy; what a function needs is imported when called.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any, cast

from ldeval.errors import LdevalError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from ldeval.integrations.callback import ProbeCallback
    from ldeval.integrations.order import recompute_examples
    from ldeval.integrations.recorder import record_examples
    from ldeval.probes import ProbeSet
    from ldeval.records import Comparison, ScoreTable

__all__ = [
    "LdevalError",
    "ProbeCallback",
    "__version__",
    "diff",
    "load_run",
    "recompute_examples",
    "record_examples",
    "score",
]
__version__ = version("ldeval")

_IN_TRAINING = {
    "ProbeCallback": "ldeval.integrations.callback",
    "recompute_examples": "ldeval.integrations.order",
    "record_examples": "ldeval.integrations.recorder",
}
"""What needs a trainer's packages, by the module that holds it."""


def __getattr__(name: str) -> Any:
    """Import what is for trainers when it is asked for (PEP 562)."""
    if name not in _IN_TRAINING:
        raise AttributeError(f"module 'ldeval' has no attribute {name!r}")
    from importlib import import_module

    try:
        return getattr(import_module(_IN_TRAINING[name]), name)
    except ImportError as error:
        from ldeval.errors import MissingExtraError

        raise MissingExtraError(error.name or "transformers", "train") from error


def score(
    model: str | Path,
    probes: str | Path | ProbeSet | None = None,
    *,
    backend: str = "hf",
    model_args: Mapping[str, Any] | None = None,
    apply_chat_template: bool = False,
) -> ScoreTable:
    """Score one model on a probe set.

    Args:
        model: folder of a full-weight checkpoint.
        probes: a probe file or set; None for the bundled set.
        backend: as in ``lm_eval --model``.
        model_args: as in ``lm_eval --model_args``, without ``pretrained``.
        apply_chat_template: put text prompts through the chat template.

    Raises:
        LdevalError: naming what is wrong with the probes, the model or the scores.
    """
    from ldeval.scoring.single import score_model

    return score_model(
        str(model),
        _probe_set(probes),
        backend=backend,
        model_args=model_args or {},
        apply_chat_template=apply_chat_template,
    )


def load_run(path: str | Path) -> list[ScoreTable]:
    """The complete tables of a run, by step.

    Args:
        path: ``STORE/RUN``, a folder or a URL.

    Raises:
        StoreError: when there is none, or one is damaged.
    """
    from ldeval.store import load_run as load

    return load(path)


def diff(
    run: str | Path | Sequence[ScoreTable], *, allow_mixed: bool = False
) -> Comparison:
    """Compare successive checkpoints, and the first with the last.

    Args:
        run: ``STORE/RUN``, scored or imported, a folder or a URL; or tables of one run.
            A stored run is read part by part, so its size is bounded by the disk alone.
        allow_mixed: compare even where backends or dtypes differ.

    Raises:
        MismatchError: when the tables must not be compared, naming both values.
    """
    from ldeval.compare import compare_run
    from ldeval.compare.imported import compare_levels
    from ldeval.compare.pairing import noise_floor
    from ldeval.decodes import run_decodes
    from ldeval.files import place
    from ldeval.imported import is_imported, read_levels
    from ldeval.records import OBJECTIVES, GreedyDecodes, ScoreSource
    from ldeval.store import open_run, read_trained_between

    trained = None
    decodes: Sequence[GreedyDecodes] = ()
    tables: Sequence[ScoreSource]
    if isinstance(run, str) or hasattr(run, "joinpath"):  # a folder or a URL
        folder = place(cast("str | Path", run))
        if is_imported(folder):
            return compare_levels(read_levels(folder))
        tables = open_run(folder)
        name = folder.name
        steps = [table.manifest.step for table in tables]
        trained = read_trained_between(folder, min(steps), max(steps))
        decodes = run_decodes(folder)
    else:
        tables = list(run)
        name = tables[0].manifest.run if tables else ""
    declared = {table.manifest.objective for table in tables}
    objective = declared.pop() if len(declared) == 1 else None
    return compare_run(
        tables,
        run=name,
        noise_floor=noise_floor(table.manifest for table in tables),
        trained_log=trained,
        decodes=decodes,
        objective_has_negative=None if objective is None else OBJECTIVES[objective],
        objective=objective,
        allow_mixed=allow_mixed,
    )


def _probe_set(probes: str | Path | ProbeSet | None) -> ProbeSet:
    from ldeval.bundled import bundled_probes
    from ldeval.probes import ProbeSet, read_probes

    if isinstance(probes, ProbeSet):
        return probes
    return read_probes(bundled_probes() if probes is None else probes)
