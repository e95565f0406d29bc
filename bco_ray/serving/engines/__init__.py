"""What generates: one protocol, three engines behind it."""
