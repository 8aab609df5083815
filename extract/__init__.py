"""From a checkpoint and a benchmark split to activations on disk (HDF5), and back.

Hooks read the sites of a live model, views keep what is asked for, the store writes it in shards that
survive a crash, and the reader opens it without torch.
"""
