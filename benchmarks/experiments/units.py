"""What is a unit in a network: the neurons, filters or heads that live or die as a whole."""

import bregjax

GROUPS = {
    "mlp": {"layers/[01]/kernel": bregjax.per_neuron()},
    "convnet": {"conv?/kernel": bregjax.per_filter(), "linear1/kernel": bregjax.per_neuron()},
    # Not filters: batch norm makes a constant of what a dead filter puts out. But nobody reads an
    # input channel without live weights.
    "resnet20": {"*/second/conv/kernel": bregjax.per_input_channel()},
    "transformer": {
        "*/attention/out/kernel": bregjax.per_head(head_axis=-3),
        "*/up/kernel": bregjax.per_neuron(),
    },
}
"""For each network, by patterns of the kernels' names: regularizers whose groups are the units."""
