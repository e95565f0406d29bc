"""Is the new model better? Held-out votes judged by the implicit reward, and the curves of a run."""
