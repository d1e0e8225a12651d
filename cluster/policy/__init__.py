"""Decisions as pure values: no clock, socket, Ray or GPU."""
