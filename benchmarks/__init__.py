"""Instruments side by side with peers: one process, one thread, interleaved."""
