"""Commands that measure speed: of a step, a prox, a training; beside PyTorch."""
