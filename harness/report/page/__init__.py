"""The report: one file of HTML that opens from disk, without a network."""
