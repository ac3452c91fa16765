"""The training loop: the step, what is reported of it, and `fit`, which runs it."""
