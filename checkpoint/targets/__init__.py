"""What can be checkpointed."""
