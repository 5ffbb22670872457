"""The first-order formula on arrays: A, and −η A K G.

For one output position with logits z, π = softmax(z) (arXiv 2407.10490,
proposition 1)::

    Δ ln π(·|x_o) = −η A(x_o) K(x_o, x_u) G(x_u, y_u) + O(η²)

    A = ∂ ln π / ∂z = I − 1πᵀ         what a change of logits does to predictions
    K = (∂z(x_o)/∂θ)(∂z(x_u)/∂θ)ᵀ     how far a step on x_u reaches to x_o
    G = ∂ℓ/∂z                         which way the loss pushes the logits of x_u

Numpy, in float64: the toys share it whatever they are computed with.
"""

from __future__ import annotations

import numpy as np

from ldeval.records import FloatArray


def log_softmax(logits: FloatArray) -> FloatArray:
    """[..., V] ln π; float64."""
    values = np.asarray(logits, dtype=np.float64)
    shifted = values - values.max(axis=-1, keepdims=True)
    result: FloatArray = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def jacobian(log_p: FloatArray) -> FloatArray:
    """[..., V, V] A = I − 1πᵀ, from [..., V] ln π."""
    p = np.exp(log_p)
    result: FloatArray = np.eye(p.shape[-1]) - p[..., None, :]
    return result


def through_softmax(log_p: FloatArray, shift: FloatArray) -> FloatArray:
    """[..., V] A Δz without forming A: Δz − ⟨π, Δz⟩."""
    result: FloatArray = shift - (np.exp(log_p) * shift).sum(axis=-1, keepdims=True)
    return result


def first_order(
    log_p: FloatArray, kernel: FloatArray, residual: FloatArray, rate: float
) -> FloatArray:
    """−η A K G, nats.

    Args:
        log_p: [..., V] ln π(·|x_o) before the step.
        kernel: [..., V, V] K(x_o, x_u).
        residual: [..., V] G(x_u, y_u).
        rate: η.
    """
    shift = -rate * (kernel @ residual[..., None])[..., 0]
    return through_softmax(log_p, shift)


def squared_norm(log_p: FloatArray) -> FloatArray:
    """[...] ‖π‖², from 1/V (uniform) to 1."""
    result: FloatArray = np.exp(2 * log_p).sum(axis=-1)
    return result


def jacobian_frobenius(log_p: FloatArray) -> FloatArray:
    """[...] ‖A‖_F = √(V − 2 + V‖π‖²)."""
    size = log_p.shape[-1]
    result: FloatArray = np.sqrt(size - 2 + size * squared_norm(log_p))
    return result


def jacobian_operator_norm(log_p: FloatArray) -> FloatArray:
    """[...] ‖A‖_op = √(V‖π‖²)."""
    result: FloatArray = np.sqrt(log_p.shape[-1] * squared_norm(log_p))
    return result
