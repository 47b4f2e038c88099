"""Readers and writers of the layouts that people have on disk."""
