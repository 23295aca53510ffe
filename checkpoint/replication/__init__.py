"""Replication: epochs on their way to a standby, which takes over."""
