"""Judge every picture of folders and object stores into one table, resumable: docs/scan.md."""
