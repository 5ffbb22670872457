"""Score checkpoints while a trainer writes them, before it deletes them.

Apart from the sweep over a finished run, whose state (:class:`Sweep`) it drives: here
is what a folder in motion needs.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from ldeval.checkpoints import describe_checkpoint, find_checkpoints, is_saved
from ldeval.errors import CheckpointError
from ldeval.files import is_remote, lenient_json, temporary_folder
from ldeval.lease import writing
from ldeval.records import Checkpoint
from ldeval.scoring.sources import model_source
from ldeval.store import run_folder
from ldeval.sweep import Sweep, SweepResult, SweepSettings

log = logging.getLogger(__name__)


def watch(
    run: str | Path,
    settings: SweepSettings,
    *,
    interval: float = 5.0,
    idle: float | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> SweepResult:
    """Score checkpoints as a trainer writes them, before it deletes them.

    Each checkpoint is linked (or copied) into the store first, so that it can be scored
    in peace. Ends when the checkpoint of the trainer's last step is scored, when none
    came for ``idle`` seconds, or at an interrupt.

    Args:
        interval: seconds between looks at the folder.
        idle: how long to wait for a next checkpoint; None waits on.
        sleep: waits that long.
    """
    done: set[str] = set()
    source = model_source(
        settings.model, settings.model_args, base=settings.base, serve=settings.serve
    )
    target = run_folder(settings.store, settings.run)
    with (
        contextlib.closing(source),
        writing(target) as still_held,
        Sweep(settings, run, source, still_held) as work,
    ):
        try:
            if settings.base is not None:
                work.take(describe_checkpoint(settings.base, 0))
            last_news = time.monotonic()
            while idle is None or time.monotonic() - last_news < idle:
                for checkpoint in _saved(run):
                    if checkpoint.path in done:
                        continue
                    done.add(checkpoint.path)
                    with _staged(checkpoint, settings.store) as safe:
                        last = _is_last(safe)
                        work.take(safe)
                    last_news = time.monotonic()
                    if last:
                        return work.result()
                sleep(interval)
        except KeyboardInterrupt:
            log.warning("interrupted; finished steps are kept")
        return work.result()


def _saved(run: str | Path) -> Iterator[Checkpoint]:
    try:
        found = find_checkpoints(run)
    except CheckpointError:
        return  # the trainer has not made the folder, or its first checkpoint, yet
    yield from (checkpoint for checkpoint in found if is_saved(checkpoint))


@contextlib.contextmanager
def _staged(checkpoint: Checkpoint, store: Path) -> Iterator[Checkpoint]:
    """The checkpoint with its files out of the trainer's reach, as long as needed.

    Linked where the store is on the same disk, copied otherwise; optimizer state is not
    needed and stays behind. What the trainer deletes meanwhile is missed, and found
    missing when the weights are checked.
    """
    near = None if is_remote(store) else store
    if near is not None:
        near.mkdir(parents=True, exist_ok=True)
    with temporary_folder(near, ".staged-") as folder:
        for source in sorted(Path(checkpoint.path).iterdir()):
            if source.is_file() and source.suffix not in (".pt", ".pth", ".bin"):
                with contextlib.suppress(FileNotFoundError):
                    _link_or_copy(source, folder / source.name)
        yield replace(checkpoint, staged=str(folder))


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(source, target)


def _is_last(checkpoint: Checkpoint) -> bool:
    state = Path(checkpoint.folder) / "trainer_state.json"
    try:
        record = lenient_json(state.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False  # deleted by the trainer before it was linked: not the last one
    if not isinstance(record, dict):
        return False
    done, last = record.get("global_step"), record.get("max_steps")
    return isinstance(done, int) and isinstance(last, int) and done >= last
