"""Parse a graph, as a process of its own; request and answer are JSON on stdin and stdout."""

import importlib
import json
import sys
from typing import Any, TypedDict


class ParseRequest(TypedDict):
    """What to parse: `module` is `tensorrt` or `tensorrt_rtx`."""

    module: str
    onnx: str


class ParseAnswer(TypedDict):
    """What the parser made of it: layers, or its errors, one line each."""

    layers: int
    faults: list[str]


def main() -> None:
    """Read a `ParseRequest`, parse, and print a `ParseAnswer` as the last line."""
    request: ParseRequest = json.load(sys.stdin)
    trt: Any = importlib.import_module(request["module"])
    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    parsed = parser.parse_from_file(request["onnx"])
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    faults = [f"{error.node_operator()} {error.node_name()}: {error.desc()}" for error in errors]
    answer = ParseAnswer(layers=network.num_layers, faults=[] if parsed else faults or ["refused without a word"])
    print("\n" + json.dumps(answer))


if __name__ == "__main__":
    main()
