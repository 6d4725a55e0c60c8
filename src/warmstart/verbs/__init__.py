"""What a person does with a checkpoint: one plain function a file."""
