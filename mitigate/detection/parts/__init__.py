"""Audits of more documents than memory holds, part by part."""
