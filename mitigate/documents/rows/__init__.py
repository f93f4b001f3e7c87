"""Rows of files and data sets: opened, read, and recognised as one of the formats that trainers leave."""
