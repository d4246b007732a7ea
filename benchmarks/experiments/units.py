"""What is a unit in a network: the neurons, filters or heads that live or die as a whole."""

import bregjax

GROUPS = {
    "mlp": {"layers/[01]/kernel": bregjax.per_neuron()},
    "convnet": {
        "conv1/kernel": bregjax.per_filter(),
        "conv2/kernel": bregjax.per_filter(),
        "linear1/kernel": bregjax.per_neuron(),
    },
    # Input channels, not filters: batch norm turns the output of a dead filter into a constant, but
    # an input channel without live weights is not read at all.
    "resnet20": {"*/second/conv/kernel": bregjax.per_input_channel()},
    "transformer": {
        "*/attention/out/kernel": bregjax.per_head(head_axis=-3),
        "*/up/kernel": bregjax.per_neuron(),
    },
}
"""For each network, by patterns of the kernels' names: regularizers whose groups are the units.

Each pattern's kernels have a density of their own.
"""

NORMALIZED = {"resnet20"}
"""Networks with batch norm behind the groups, which have to keep their weights when λ changes."""
