"""Checkpoints over HTTP: one queue and one worker a model, several protocols on one port."""
