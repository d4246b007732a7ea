"""The errors that the command line prints as one line."""


class BenchmarkError(Exception):
    """Something that the user can fix; the message says how."""


class DivergenceError(BenchmarkError):
    """The loss of a training is not finite any more."""
