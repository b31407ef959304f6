"""The repair: unsafe subspaces at chosen sites, projected out while the model runs."""
