"""Folding LoRA, and folders that transformers loads."""
