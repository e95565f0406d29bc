"""The job service's routes."""
