"""`mitigate bench unlearn`."""
