"""Regularizers of unit strength, one family a file."""
