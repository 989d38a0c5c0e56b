"""Rate, distortion and perception, each a function of documented tensors."""
