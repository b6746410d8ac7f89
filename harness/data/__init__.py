"""Datasets: read, check, collect; batches on the device."""
