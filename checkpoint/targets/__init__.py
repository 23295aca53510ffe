"""What can be checkpointed: a process, a virtual machine. Each is a `Source` (checkpoint/source.py)."""
