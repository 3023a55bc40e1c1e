"""Tests of LoRA adapters, and of their products."""
