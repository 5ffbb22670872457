"""The theory: what first order says that a step of training does to a prediction.

    Δ ln π(y|x_o) = −η A(x_o) K(x_o, x_u) G(x_u, y_u) + O(η²)

(arXiv 2407.10490, proposition 1). Numbers only; drawing them is the report's.

::

    dynamics/
    └── residuals.py    G: the exact gradient of every loss with respect to the logits
"""
