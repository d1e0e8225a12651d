"""SavedModels and TFLite files from elsewhere: checked, and brought into a work folder.

A SavedModel is a program: its graph may read and write files or call back into Python. Those operations are refused.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from cluster.errors import ConversionFailed
from cluster.tensors import ANY
from converters.candidate import Candidate, Options, Say
from converters.isolated import describe
from converters.ranges import check_ranges, parse_ranges
from converters.runtime import Specs
from converters.source_cases import fixed_note, with_cases

FOLDER = "saved_model"
MAX_MODEL_BYTES = 64 << 30

# What reaches outside of the graph: Python, files, sockets, and code that is loaded by name.
_EFFECTS = {
    *("PyFunc", "PyFuncStateless", "EagerPyFunc", "ReadFile", "WriteFile", "MatchingFiles", "PrintV2", "Print"),
    *("WholeFileReader", "WholeFileReaderV2", "TextLineReader", "TextLineReaderV2", "TFRecordReader"),
    *("TFRecordReaderV2", "FixedLengthRecordReader", "FixedLengthRecordReaderV2", "TextLineDataset"),
    *("TFRecordDataset", "FixedLengthRecordDataset", "FixedLengthRecordDatasetV2", "SqlDataset", "SaveDataset"),
    *("SaveDatasetV2", "LoadDataset", "DebugIdentity", "DebugIdentityV2", "XlaLaunch", "Send", "Recv"),
    *("ImmutableConst", "DecodeProtoV2", "EncodeProto", "LMDBReader", "LMDBDataset", "CSVDataset", "CSVDatasetV2"),
    *("CacheDataset", "CacheDatasetV2", "SnapshotDataset", "SnapshotDatasetV2", "DatasetToTFRecord", "Save"),
    *("CreateSummaryDbWriter", "ImportEvent", "DebugNanCount", "DebugNumericSummary", "DebugNumericSummaryV2"),
    *("DataServiceDataset", "FileSystemSetConfiguration"),
    *("RemoteCall", "RpcCall", "SaveSlices", "CreateSummaryFileWriter", "WriteSummary", "DumpTensor"),
}


def convert_saved_model(candidate: Candidate, work: Path, options: Options, say: Say) -> Candidate:
    """The same SavedModel, checked and copied; nothing can be compared with, so it is compared with itself.

    Raises: ConversionFailed if it is damaged, could do more than compute, or cannot be loaded.
    """
    from converters.tf_runtime import GRAPH_FILE, describe_model

    say("checking the SavedModel")
    check_folder(candidate.path)
    if not options.trust_pickle:
        refuse_effects(candidate.path / GRAPH_FILE)
    folder = work / FOLDER
    shutil.copytree(candidate.path, folder)
    found = replace(candidate, path=folder / GRAPH_FILE, format="tensorflow", folder=work)
    return as_found(found, describe_model(found.path)[0], options)


def convert_tflite(candidate: Candidate, work: Path, options: Options, say: Say) -> Candidate:
    """The same TFLite file, checked and copied, to be compared with itself. Raises: ConversionFailed."""
    say("checking the TFLite file")
    path = work / "model.tflite"
    if candidate.path.stat().st_size > MAX_MODEL_BYTES:
        raise ConversionFailed(f"{candidate.path.name}: more than {MAX_MODEL_BYTES} bytes")
    shutil.copyfile(candidate.path, path)
    inputs, _ = describe(path, "tflite")
    return as_found(replace(candidate, path=path, format="tflite", folder=work), inputs, options)


def as_found(candidate: Candidate, inputs: Specs, options: Options) -> Candidate:
    """`candidate`, whose model comes without a source, with the cases to prove it on and what it takes as notes."""
    check_ranges(parse_ranges(options.dynamic), inputs)
    batched = options.max_rows > 1 and all(spec.shape and spec.shape[0] == ANY for spec in inputs)
    notes = () if batched or options.max_rows == 1 else (fixed_note(inputs),)
    found = replace(candidate, notes=(*candidate.notes, *notes))
    return with_cases(found, inputs, options, batched)


def check_folder(folder: Path) -> None:
    """Raises: ConversionFailed if copying the folder would copy what is not in it, or more than may be read."""
    root = folder.resolve()
    total = 0
    for entry in folder.rglob("*"):
        if not entry.resolve().is_relative_to(root) or (entry.is_symlink() and entry.is_dir()):
            raise ConversionFailed(f"{folder.name}: it holds a link out of its folder, or to a folder: {entry.name}")
        if entry.is_file():
            total += entry.stat().st_size
        elif not entry.is_dir():
            raise ConversionFailed(f"{folder.name}: {entry.name} is neither a file nor a folder")
    if total > MAX_MODEL_BYTES:
        raise ConversionFailed(f"{folder.name}: more than {MAX_MODEL_BYTES} bytes")


def refuse_effects(graph_file: Path) -> None:
    """Raises: ConversionFailed if the graph could do more than compute."""
    found = sorted(set(_operations(graph_file)) & _EFFECTS)
    if found:
        raise ConversionFailed(
            f"{graph_file.parent.name}: its graph holds {', '.join(found)}, which reach outside of it; "
            "--trust-pickle loads it all the same"
        )


def _operations(graph_file: Path) -> Iterator[str]:
    from converters.tf_runtime import serving_graph

    graph = serving_graph(graph_file).graph_def
    nodes: Sequence[Sequence[object]] = [graph.node, *(function.node_def for function in graph.library.function)]
    for group in nodes:
        yield from (str(node.op) for node in group)  # type: ignore[attr-defined]  # protobuf's generated classes
