"""From recordings and conversations to packed batches."""
