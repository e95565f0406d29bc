"""Feedback logs in, canonical records out, as a Ray Dataset; what cannot be used lands in quarantine with a reason."""
