"""Decodes DICOM files with pydicom and prints, per file, the stored values' checksums as JSON.

Usage: pixels.py FILE...   (one JSON object per line: path, and frames or error)
Stored values are cut to Bits Stored below High Bit (bits above may hold overlays) and printed as the SHA-256 of their
little-endian 32-bit integers, with minimum, maximum and sum per frame.
"""
import hashlib
import json
import sys
import warnings

import numpy as np
import pydicom

warnings.simplefilter("ignore")


def frames(path):
    ds = pydicom.dcmread(path, force=True)
    pixels = ds.pixel_array
    if ds.get("SamplesPerPixel", 1) != 1:
        raise ValueError("colour")
    if ds.get("NumberOfFrames", 1) in (None, 1):
        pixels = pixels.reshape((1,) + pixels.shape[-2:])
    values = pixels.astype(np.int64)
    stored, high = ds.BitsStored, ds.get("HighBit", ds.BitsStored - 1)
    values = (values >> (high + 1 - stored)) & ((1 << stored) - 1)
    if ds.PixelRepresentation == 1:
        values = np.where(values >= 1 << (stored - 1), values - (1 << stored), values)
    out = []
    for frame in values:
        frame = np.ascontiguousarray(frame.astype("<i4"))
        out.append({"sha256": hashlib.sha256(frame.tobytes()).hexdigest(), "rows": frame.shape[0],
                    "columns": frame.shape[1], "min": int(frame.min()), "max": int(frame.max()),
                    "sum": int(frame.astype(np.int64).sum())})
    return out


for path in sys.argv[1:]:
    try:
        print(json.dumps({"path": path, "frames": frames(path)}))
    except Exception as error:  # whatever pydicom raises is its refusal
        print(json.dumps({"path": path, "error": f"{type(error).__name__}: {error}"[:200]}))
