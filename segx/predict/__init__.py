"""Image files in, mask files out, at the speed of the runtime."""
