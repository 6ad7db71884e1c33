"""Faults, injected into real runs in processes of their own."""
