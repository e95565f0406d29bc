"""What survives a process: files committed by manifests, the model registry, the feedback log."""
