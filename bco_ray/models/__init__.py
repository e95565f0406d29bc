"""Loading, adapting and sampling from Hugging Face models: one of the doors to transformers."""
