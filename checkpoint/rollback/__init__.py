"""Putting a process, or a tree of them, back to an epoch."""
