"""Find the checkpoints of a run, order them by step, and look at their weight files.

One layout is read, which transformers' trainer writes and with it TRL, axolotl and
LLaMA-Factory::

    <run>/
        checkpoint-120/      full weights, in one file or shards with an index,
        checkpoint-240/      or an adapter
        model.safetensors    what training ended with; trainer_state.json beside it
                             says at which step

What other layouts need is in :mod:`foreign`.
"""

from ldeval.checkpoints.checks import BrokenCheckpoint, check_weights
from ldeval.checkpoints.finding import ended_with, find_checkpoints, is_saved
from ldeval.checkpoints.layout import (
    base_of,
    describe_checkpoint,
    has_tokenizer,
    weight_files,
)
from ldeval.checkpoints.tensors import (
    stored_dtype,
    tensor_header,
    tensor_shapes,
    weights_hash,
)

__all__ = [
    "BrokenCheckpoint",
    "base_of",
    "check_weights",
    "describe_checkpoint",
    "ended_with",
    "find_checkpoints",
    "has_tokenizer",
    "is_saved",
    "stored_dtype",
    "tensor_header",
    "tensor_shapes",
    "weight_files",
    "weights_hash",
]
