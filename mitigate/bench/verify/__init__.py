"""`mitigate bench verify`."""
