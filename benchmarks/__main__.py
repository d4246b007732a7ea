"""The command line: ``python -m benchmarks NAME [options]``."""

import sys
from collections.abc import Sequence

try:
    import tyro

    from benchmarks.cli.errors import BenchmarkError
    from benchmarks.cli.interruption import Interrupted
    from benchmarks.experiments.any_optimizer import AnyOptimizer
    from benchmarks.experiments.cifar_resnet import CifarResNet
    from benchmarks.experiments.compaction import Compacted
    from benchmarks.experiments.denoising_autoencoder import DenoisingAutoencoder
    from benchmarks.experiments.densenet_search import DenseNetSearch
    from benchmarks.experiments.digits import Digits
    from benchmarks.experiments.experiment import Experiment
    from benchmarks.experiments.fashion_convnet import FashionConvNet
    from benchmarks.experiments.first_network import FirstNetwork
    from benchmarks.experiments.from_dense import FromDense
    from benchmarks.experiments.lenet import LeNet
    from benchmarks.experiments.lowrank_convnet import LowrankConvnet
    from benchmarks.experiments.lowrank_mlp import LowrankMlp
    from benchmarks.experiments.mnist_mlp import MnistMlp
    from benchmarks.experiments.multilevel import Multilevel
    from benchmarks.experiments.runner import run
    from benchmarks.experiments.shrink import Shrink
    from benchmarks.experiments.sparsity_path import SparsityPath
    from benchmarks.experiments.target_sparsity import TargetSparsity
    from benchmarks.experiments.training_length import TrainingLength
    from benchmarks.speed.lowrank_speed import LowrankSpeed
    from benchmarks.speed.peers import Peers
    from benchmarks.speed.shrink_speed import ShrinkSpeed
    from benchmarks.speed.sparse_speed import SparseSpeed
    from benchmarks.speed.step_cost import StepCost
    from benchmarks.speed.training_cost import TrainingCost
except ModuleNotFoundError as missing:
    if (missing.name or "").partition(".")[0] in ("benchmarks", "bregjax"):
        raise
    sys.exit(f"error: {missing.name} is not installed: pip install 'bregjax[benchmarks]'.")

COMMANDS = {
    command.name: command
    for command in (
        Digits,
        FirstNetwork,
        FromDense,
        Compacted,
        MnistMlp,
        FashionConvNet,
        DenoisingAutoencoder,
        DenseNetSearch,
        CifarResNet,
        LeNet,
        TargetSparsity,
        TrainingLength,
        AnyOptimizer,
        SparsityPath,
        Shrink,
        Multilevel,
        LowrankMlp,
        LowrankConvnet,
        StepCost,
        TrainingCost,
        LowrankSpeed,
        ShrinkSpeed,
        SparseSpeed,
        Peers,
    )
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one experiment; returns the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    named = arguments[0] if arguments else "--help"
    known = ", ".join(sorted(COMMANDS))
    if not named.startswith("-") and named not in COMMANDS:
        return _complain(f"unknown experiment {named!r}; there are: {known}.", 2)
    if named in COMMANDS:
        # Alone: of a mistake in its options tyro would offer those of the others.
        prog = f"python -m benchmarks {named}"
        command = tyro.cli(COMMANDS[named], args=arguments[1:], prog=prog)
    else:
        command = tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            args=arguments or ["--help"],
            prog="python -m benchmarks",
            description="Experiments with bregjax on real data.",
        )
    try:
        run(command) if isinstance(command, Experiment) else command.run()
    except BenchmarkError as error:
        return _complain(str(error), 1)
    except Interrupted as error:
        where, number = error.args
        return _complain(f"stopped: {where}. Run the same command again to go on.", 128 + number)
    except KeyboardInterrupt:
        return _complain("interrupted.", 130)
    return 0


def _complain(message: str, status: int) -> int:
    """Print one line that says what is wrong; returns the exit status."""
    sys.stderr.write(f"error: {message}\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
