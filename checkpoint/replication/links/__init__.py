"""Direct links between two hosts."""
