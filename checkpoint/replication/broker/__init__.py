"""Replication through NATS JetStream."""
