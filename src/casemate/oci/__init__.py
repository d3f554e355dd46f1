"""OCI images: names, layouts and archives, safe unpacking of layers, the store, and the runtime spec of a container."""
