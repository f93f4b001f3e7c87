"""The report: its figures read by key, what they amount to in words, and the page that shows them."""
