"""The phases of one run, in order and resumable: export -> score -> train -> evaluate -> register."""
