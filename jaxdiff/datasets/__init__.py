"""Our own tensorflow-datasets builders, and the preparation of two of tfds's own without TensorFlow."""
