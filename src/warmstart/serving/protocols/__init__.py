"""One file a protocol: each turns requests into rows, and predictions into the answers its clients expect."""
