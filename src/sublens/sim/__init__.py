"""The simulator: draw scenes (`population`), then turn them into images (`render`)."""
