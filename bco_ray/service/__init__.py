"""The whole server: the model service and the job service on one port."""
