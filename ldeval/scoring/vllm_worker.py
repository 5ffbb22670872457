"""What runs inside a vLLM worker: swap the weights of a live engine for a checkpoint's,
and see to it that prompt scores come out right beside adapters.

vLLM's own in-place reload is silently wrong for tied embeddings: the output layer
keeps the old matrix. An engine started with ``tie_word_embeddings`` off has an output
layer of its own, which is fed the embedding a second time here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ldeval.checkpoints import weight_files

EMBEDDINGS = (
    "embed_tokens.weight",
    "wte.weight",
    "word_embeddings.weight",
    "embed_in.weight",
)
"""How checkpoints name their input embedding, after the module path."""


class WorkerExtension:
    """Mixed into the worker class (``worker_extension_cls``)."""

    def ldeval_swap(self, folder: str, tied: bool | str) -> int:
        """Load a checkpoint's weights in place.

        Args:
            folder: of safetensors files.
            tied: whether the output layer is the input embedding; a server hands it
                on as text.

        Returns:
            How many tensors were loaded.
        """
        count = 0

        def counted() -> Iterator[tuple[str, Any]]:
            nonlocal count
            for item in checkpoint_tensors(folder, tied in (True, "true")):
                count += 1
                yield item

        self.reload_weights(weights_iterator=counted())  # type: ignore[attr-defined]
        return count

    def ldeval_plain_logits(self) -> int:
        """Take adapters out of the output layer, which none of ours may change.

        With adapters, vLLM computes logits for as many rows as there are requests;
        prompt scores need a row a token, on which it fails.

        Returns:
            How many logits processors were replaced by their own.
        """
        model: Any = self.model_runner.get_model()  # type: ignore[attr-defined]
        wrapped = [
            (name, module.base_layer)
            for name, module in model.named_modules()
            if type(module).__name__ == "LogitsProcessorWithLoRA"
        ]
        for name, own in wrapped:
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, own)
        return len(wrapped)

    def ldeval_facts(self) -> dict[str, Any]:
        """What a client of a server cannot see: dtype, vocabulary, length."""
        config: Any = self.model_runner.model_config  # type: ignore[attr-defined]
        return {
            "dtype": str(config.dtype),
            "vocab_size": int(config.get_vocab_size()),
            "max_model_len": int(config.max_model_len),
        }


def checkpoint_tensors(folder: str, tied: bool) -> Iterator[tuple[str, Any]]:
    """(name, tensor) of every weight; a tied embedding again as ``lm_head.weight``.

    Raises:
        ValueError: when the embedding of a tied checkpoint cannot be found.
    """
    from safetensors import safe_open

    embedding = None
    has_head = False
    for path in weight_files(folder):
        with safe_open(str(path), framework="pt") as handle:
            for name in handle.keys():  # noqa: SIM118  # not a mapping
                tensor = handle.get_tensor(name)
                has_head = has_head or name == "lm_head.weight"
                if name.endswith(EMBEDDINGS):
                    embedding = tensor
                yield name, tensor
    if tied and not has_head:
        if embedding is None:
            raise ValueError(f"{folder}: no input embedding among its tensors")
        yield "lm_head.weight", embedding
