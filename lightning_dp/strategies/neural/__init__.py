"""What NeuralDPStrategy is made of: a private release of activations, its cache, and the checks before it."""
