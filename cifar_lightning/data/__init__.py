"""Images: one file a source; splits, batches and augmentation."""
