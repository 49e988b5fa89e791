"""Checkpoints that other code has trained, into ours."""
