"""Using a finished run: prediction, export, model card."""
