"""What tests build and break: tiny checkpoints, damaged files, a stand-in of a model hub."""
