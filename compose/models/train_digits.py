#!/usr/bin/env python3
"""Trains the digits model of the demo and writes everything the demo needs of it.

UCI handwritten digits (scikit-learn's `load_digits`) are split into 1,347 rows to train on and 450 held out; a small
multi-layer perceptron is trained, exported to ONNX and judged on the held-out rows by ONNX Runtime, one row a run.

With the versions of requirements.txt, two runs on one machine write the same bytes.
"""

import argparse
import csv
import hashlib
import json
import os
import platform
from pathlib import Path

# More threads sum in another order, which changes the weights' last bits. BLAS reads these once, when numpy loads it.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"

import numpy as np
import onnx
import onnxruntime
import sklearn
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

SEED = 20
HELD_OUT = 450
HIDDEN = (128,)
PIXEL_MAX = 16.0
# The pair the fleet's ONNX Runtime and every execution provider have long known.
IR_VERSION, OPSET = 8, 17
MIN_ACCURACY = 0.95
HERE = Path(__file__).resolve().parent


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model-dir", type=Path, default=HERE / "digits",
        help="where 1/model.onnx and training.json go (default: digits beside this script)",
    )
    parser.add_argument(
        "--data-file", type=Path, default=HERE.parent / "data" / "digits.csv",
        help="where the data goes as CSV (default: ../data/digits.csv seen from this script)",
    )
    return parser.parse_args()


def main():
    arguments = parse_arguments()

    pixels, labels = load_digits(return_X_y=True)
    rows = np.arange(len(labels))
    train, test = train_test_split(rows, test_size=HELD_OUT, stratify=labels, random_state=SEED)
    print(f"data: {len(rows)} rows, {len(train)} to train on, {len(test)} held out")

    write_data(arguments.data_file, pixels, labels, set(test.tolist()))
    print(f"wrote {arguments.data_file}")

    network = MLPClassifier(hidden_layer_sizes=HIDDEN, alpha=1e-3, max_iter=400, random_state=SEED)
    network.fit(pixels[train] / PIXEL_MAX, labels[train])
    print(f"trained {network.n_iter_} epochs, loss {network.loss_:.4f}")

    model_file = arguments.model_dir / "1" / "model.onnx"
    model_file.parent.mkdir(parents=True, exist_ok=True)
    model = to_onnx(network)
    onnx.checker.check_model(model, full_check=True)
    model_file.write_bytes(model.SerializeToString(deterministic=True))
    print(f"wrote {model_file}, {model_file.stat().st_size} bytes")

    correct = count_correct(model_file, pixels[test], labels[test])
    accuracy = correct / len(test)
    print(f"held-out rows classified by ONNX Runtime: {correct} of {len(test)} correct, {accuracy:.4f}")
    if accuracy < MIN_ACCURACY:
        raise SystemExit(f"accuracy {accuracy:.4f} is below {MIN_ACCURACY}: not a model to demonstrate with")

    report_file = arguments.model_dir / "training.json"
    write_report(report_file, len(rows), len(test), correct, model_file)
    print(f"wrote {report_file}")


def write_data(file, pixels, labels, held_out):
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow([f"p{index}" for index in range(pixels.shape[1])] + ["label", "split"])
        for row, (image, label) in enumerate(zip(pixels.astype(int).tolist(), labels.tolist())):
            writer.writerow([*image, label, "test" if row in held_out else "train"])


def to_onnx(network):
    """The network as a graph that takes raw pixels: clients should not need to know how it was trained."""
    nodes = [helper.make_node("Div", ["image", "pixel_max"], ["scaled"])]
    initializers = [numpy_helper.from_array(np.float32(PIXEL_MAX), "pixel_max")]
    value = "scaled"
    for layer, (weight, bias) in enumerate(zip(network.coefs_, network.intercepts_)):
        initializers.append(numpy_helper.from_array(weight.astype(np.float32), f"weight_{layer}"))
        initializers.append(numpy_helper.from_array(bias.astype(np.float32), f"bias_{layer}"))
        nodes.append(helper.make_node("Gemm", [value, f"weight_{layer}", f"bias_{layer}"], [f"dense_{layer}"]))
        value = f"dense_{layer}"
        if layer < len(network.coefs_) - 1:
            nodes.append(helper.make_node("Relu", [value], [f"relu_{layer}"]))
            value = f"relu_{layer}"
    nodes.append(helper.make_node("Softmax", [value], ["probabilities"], axis=1))
    nodes.append(helper.make_node("ArgMax", ["probabilities"], ["label"], axis=1, keepdims=0))

    classes = len(network.classes_)
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", network.n_features_in_])],
        [
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", classes]),
            helper.make_tensor_value_info("label", TensorProto.INT64, ["batch"]),
        ],
        initializers,
    )
    return helper.make_model(
        graph,
        producer_name="train_digits",
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET)],
    )


def count_correct(model_file, pixels, labels):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model_file, options, providers=["CPUExecutionProvider"])
    correct = 0
    for image, label in zip(pixels.astype(np.float32), labels):
        [predicted] = session.run(["label"], {"image": image[np.newaxis]})
        correct += int(predicted[0] == label)
    return correct


def write_report(file, rows, held_out, correct, model_file):
    report = {
        "rows": rows,
        "held_out": held_out,
        "correct": correct,
        "accuracy": round(correct / held_out, 6),
        "accuracy_of": "held-out",
        "seed": SEED,
        "model_sha256": hashlib.sha256(model_file.read_bytes()).hexdigest(),
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "scikit-learn": sklearn.__version__,
            "onnx": onnx.__version__,
            "onnxruntime": onnxruntime.__version__,
        },
    }
    file.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
