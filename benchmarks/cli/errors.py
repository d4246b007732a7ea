"""The error that the command line prints as one line."""


class BenchmarkError(Exception):
    """Something that the user can fix; the message says how."""
