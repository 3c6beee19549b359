"""The Hub during a run: pushing in the background, trying again, loading over bad lines."""
