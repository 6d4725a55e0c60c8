"""The command line: one thin file a command; data to stdout, everything else to stderr."""
