"""What an active and its standby do, without I/O."""
