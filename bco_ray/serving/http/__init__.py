"""HTTP in front of the model: OpenAI's shapes in and out, votes, the registry. Knows engines only by their protocol."""
