"""The report: one HTML page about one run that loads nothing from elsewhere."""
