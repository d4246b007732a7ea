"""Counting multiply-adds, and timing."""
