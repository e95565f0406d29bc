"""vLLM inside our replica, for clusters with GPUs (the extra `vllm`)."""
