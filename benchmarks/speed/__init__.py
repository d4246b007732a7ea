"""How fast: a step, a prox, a training, beside PyTorch."""
