"""The job service: who may, files, jobs, and what happens to them."""
