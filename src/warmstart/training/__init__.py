"""Fine-tuning: the configuration, the visible loop, optimizers, and batches for a person's own loop."""
