"""The error that the command line prints as one line."""


class BenchmarkError(Exception):
    """Something the user can mend; the message says how."""
