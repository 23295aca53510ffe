"""Epochs that go to a standby, and the standby that takes over."""
