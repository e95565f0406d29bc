"""Scored shards to a trained model: window plan, batches, the optimizer step, checkpoints, and Ray Train around it.

`plan`, `batches`, `gang`, `engine`, `step` and `loop` know nothing of Ray; only `launch` does.
"""
