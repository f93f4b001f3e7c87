"""`mitigate bench population`."""
