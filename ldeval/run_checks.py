"""Do checkpoints belong to one run? Scores of different models are not compared.

Apart from the sweep, which asks for every checkpoint; here is what it remembers of the
first one.
"""

from __future__ import annotations

from ldeval.checkpoints import tensor_shapes
from ldeval.errors import CheckpointError
from ldeval.printable import quoted
from ldeval.records import Checkpoint, Manifest


class RunChecks:
    """What the first checkpoint of a run was like."""

    def __init__(self) -> None:
        self._shapes: dict[str, tuple[int, ...]] | None = None
        self._first: Manifest | None = None

    def remember(self, manifest: Manifest) -> None:
        """The run's first scores."""
        self._first = manifest

    def check_shapes(self, checkpoint: Checkpoint) -> None:
        """Missing tensors would be filled with random numbers without a word.

        Raises:
            CheckpointError: when a tensor is missing, new, or of another shape.
        """
        if checkpoint.layout == "adapter":
            return
        shapes = tensor_shapes(checkpoint.folder)
        if self._shapes is None:
            self._shapes = shapes
        for name in sorted(self._shapes.keys() | shapes.keys()):
            first, now = self._shapes.get(name), shapes.get(name)
            if first != now:
                raise CheckpointError(
                    f"{checkpoint.path}: tensor {quoted(name, 200)} has shape {now}, "
                    f"the run's first checkpoint has {first}. Is this checkpoint from "
                    "another model, or incomplete?"
                )

    def check_alike(self, manifest: Manifest) -> None:
        """A checkpoint with another tokenizer is not of this run.

        Raises:
            CheckpointError: naming both values.
        """
        if self._first is None:
            return
        for name in ("tokenizer_hash", "template_hash", "vocab_size"):
            first, now = getattr(self._first, name), getattr(manifest, name)
            if first != now:
                raise CheckpointError(
                    f"{manifest.checkpoint}: {name} is {now}, step {self._first.step} "
                    f"has {first}. Is this checkpoint from another run? Scores in "
                    "different tokens cannot be compared."
                )
