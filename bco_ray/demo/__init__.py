"""The embedded default: a small world, a hidden rule that judges, a model that answers, and the whole loop on it."""
