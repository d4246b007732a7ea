"""The command line: its options, errors, progress and interruptions."""
