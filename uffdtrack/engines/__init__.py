"""One module per tracking mechanism."""
