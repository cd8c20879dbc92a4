"""ONNX Runtime as a peer: loads one model and runs it on request, for tests and for `scanside bench segment`.

usage: ort_worker.py MODEL THREADS DIR. DIR holds NAME.f32 (raw, little-endian) for each input, `/` in names as they are.
Each line on standard input runs the model once; the answer is one line with the seconds it took. The outputs of the
first run are written to DIR/out.NAME.f32.
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
inputs = {i.name: np.fromfile(folder / f"{i.name}.f32", "<f4").reshape(i.shape) for i in session.get_inputs()}
print("ready", onnxruntime.__version__, flush=True)
written = False
for _ in sys.stdin:
    start = time.perf_counter()
    outputs = session.run(None, inputs)
    seconds = time.perf_counter() - start
    if not written:
        for meta, value in zip(session.get_outputs(), outputs):
            value.astype("<f4").tofile(folder / f"out.{meta.name}.f32")
        written = True
    print(f"{seconds:.6f}", flush=True)
