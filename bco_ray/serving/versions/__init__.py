"""Which version answers: what the registry wants, how it gets there without a gap, who may go when. No Ray."""
