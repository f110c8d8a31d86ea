"""Tiny tensors only: more threads would spend their time meeting each other."""

import torch

torch.set_num_threads(1)
