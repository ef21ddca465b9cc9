"""Elastic Looped Transformers in JAX: one checkpoint, any number of loops."""
