"""The model server: an OpenAI-compatible API over one engine, every answer logged, every vote kept."""
