"""The page at `/`: served as it was built from `source/`, which is TypeScript and not part of the wheel."""
