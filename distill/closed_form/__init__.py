"""A student's first weights from a ViT teacher without training: `inherit` is the method, `fit` keeps its result."""
