"""Distances between samples and clean images."""
