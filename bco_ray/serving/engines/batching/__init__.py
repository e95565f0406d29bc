"""The embedded engine: continuous batching over a plain transformers forward."""
