"""Framed connections between gateways and model replicas: `docs/wire.md` describes the bytes."""
