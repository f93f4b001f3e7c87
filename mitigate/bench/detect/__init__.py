"""`mitigate bench detect`."""
