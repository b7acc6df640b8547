"""Kernels: implementations of ops that core owns the meaning of."""
