"""Times ONNX Runtime on the graphs of a folder; prints one JSON object. Arguments: folder, rounds."""
import json, os, sys, time
import numpy as np

try:
    import torch  # Brings the CUDA libraries that the CUDA provider loads.
except ImportError:
    torch = None
import onnxruntime as ort

folder, rounds = sys.argv[1], int(sys.argv[2])
ort.set_default_logger_severity(3)
wanted = [p for p in ("CUDAExecutionProvider", "CPUExecutionProvider") if p in ort.get_available_providers()]
result = {"version": ort.__version__, "available": ort.get_available_providers()}
for part in ("encoder", "classifier", "decoder"):
    feed, i = {}, 0
    while os.path.exists(f"{folder}/{part}/{i}.json"):
        info = json.load(open(f"{folder}/{part}/{i}.json"))
        feed[info["name"]] = np.fromfile(f"{folder}/{part}/{i}.f32", np.float32).reshape(info["shape"])
        i += 1
    for provider in wanted:
        try:
            session = ort.InferenceSession(f"{folder}/{part}/model.onnx", providers=[provider])
            # A provider that cannot be loaded is left out silently by ONNX Runtime.
            if session.get_providers()[0] != provider:
                raise RuntimeError(f"{provider} did not load")
            n = rounds if provider.startswith("CUDA") else min(rounds, 10)
            for _ in range(3):
                session.run(None, feed)
            times = []
            for _ in range(n):
                start = time.perf_counter()
                session.run(None, feed)
                times.append(1e3 * (time.perf_counter() - start))
            times.sort()
            at = lambda share: times[round((len(times) - 1) * share)]
            result.setdefault(provider, {})[part] = {"p50": at(0.5), "p99": at(0.99)}
        except Exception as e:
            result.setdefault(provider, {})[part] = {"error": str(e)[:300]}
print(json.dumps(result))
