"""The theory: what first order says that a step of training does to a prediction.

    Δ ln π(y|x_o) = −η A(x_o) K(x_o, x_u) G(x_u, y_u) + O(η²)

(arXiv 2407.10490, proposition 1). Numbers only; drawing them is the report's.

::

    dynamics/
    ├── residuals.py      G: the exact gradient of every loss at the logits
    ├── first_order.py    A, and −η A K G on arrays
    ├── squeezing.py      one step against one response, in closed form
    ├── panels.py         squeeze panels and residual panels to look at
    ├── bigram.py         responses of two words, all of them at once
    ├── images.py         digits that need no download
    └── digits.py         A, K and G of a network while it learns
"""
