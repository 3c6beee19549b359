"""Measuring how fast the towers are, against their rivals and against the targets."""
