"""The theory: what first order says that a step of training does to a prediction.

    Δ ln π(y|x_o) = −η A(x_o) K(x_o, x_u) G(x_u, y_u) + O(η²)

(arXiv 2407.10490, proposition 1). Numbers only; drawing them is the report's.

::

    dynamics/
    ├── residuals.py        G: the exact gradient of every loss in the logits
    │
    │   toys (docs/theory.md)
    ├── first_order.py      A, and −η A K G on arrays
    ├── squeezing.py        one step against one response, in closed form
    ├── panels.py           squeeze panels and residual panels to look at
    ├── bigram.py           responses of two words, all of them at once
    ├── images.py           digits that need no download
    ├── digits.py           A, K and G of a network while it learns
    │
    │   language models (docs/dynamics.md)
    ├── causal_lm.py        a model that can be differentiated
    ├── precision.py        float64 throughout
    ├── sequences.py        responses to tensors and log-probabilities
    ├── data.py             training examples from files
    ├── training.py         a batch, its loss, its gradients
    ├── optimizer_state.py  what an optimizer remembers, by parameter name
    ├── update.py           a step as a sum of directions
    ├── predict.py          predicted against measured change
    ├── held.py             directions in memory, met by responses' gradients
    ├── influence.py        a step taken apart by training example
    ├── projection.py       the same from projected gradients
    ├── kernel.py           ‖K‖_F
    ├── risk.py             preference pairs before training
    ├── journal.py          finished rows of a long computation
    ├── results.py          what is left on disk
    └── run.py              whole computations, as the commands ask for them
"""
