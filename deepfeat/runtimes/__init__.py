"""Runtimes: a backbone becomes a callable from uint8 images to float32 features."""
