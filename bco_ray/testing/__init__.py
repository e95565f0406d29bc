"""Small real things that tests and the demo stand on: a tiny model directory that loads like any other."""
