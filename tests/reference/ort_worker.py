"""ONNX Runtime as a peer: loads one model and runs it on request, for tests, `scanside bench segment` and `bench precision`.

usage: ort_worker.py MODEL THREADS DIR. DIR holds NAME.f32 (raw, little-endian) for each input, `/` in names as they are.
Each line on standard input runs the model once. The line `run`: the answer is one line with the seconds it took; the outputs
of the first run are written to DIR/out.NAME.f32. The line `infer NAME...`: those inputs are read again first, every output is
written, and the answer is one line with NAME=D,D,.. of each.
"""

import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime

model, threads, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = threads
options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
shapes = {i.name: i.shape for i in session.get_inputs()}
read = lambda name: np.fromfile(folder / f"{name}.f32", "<f4").reshape(shapes[name])
inputs = {name: read(name) for name in shapes}
print("ready", onnxruntime.__version__, flush=True)
written = False
for line in sys.stdin:
    command, *changed = line.split() or ["run"]
    inputs.update({name: read(name) for name in changed})
    start = time.perf_counter()
    outputs = session.run(None, inputs)
    seconds = time.perf_counter() - start
    named = [(meta.name, value) for meta, value in zip(session.get_outputs(), outputs)]
    if command == "infer" or not written:
        for name, value in named:
            value.astype("<f4").tofile(folder / f"out.{name}.f32")
        written = True
    if command == "infer":
        print(" ".join(f"{name}={','.join(map(str, value.shape))}" for name, value in named), flush=True)
    else:
        print(f"{seconds:.6f}", flush=True)
