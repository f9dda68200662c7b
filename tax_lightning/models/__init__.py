"""The networks, in plain PyTorch: backbone, kernel bank, prototypes, and what is made of them."""
