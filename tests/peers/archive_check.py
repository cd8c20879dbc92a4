"""Reads a segmentation and a report from an archive with highdicom and holds them against the images they are of.

usage: archive_check.py SEG SR SOURCE...
Prints what it saw; exits non-zero where a reference, a grid or a volume does not hold.
"""
import sys

import highdicom as hd
import numpy as np
import pydicom

seg_path, sr_path, *sources = sys.argv[1:]
images = [pydicom.dcmread(s, stop_before_pixels=True) for s in sources]
images.sort(key=lambda i: float(i.ImagePositionPatient[2]))
first = images[0]
seg = hd.seg.segread(seg_path)
sr = hd.sr.srread(sr_path)
for name in ("PatientID", "StudyInstanceUID"):
    assert getattr(seg, name) == getattr(sr, name) == getattr(first, name), name
assert seg.FrameOfReferenceUID == first.FrameOfReferenceUID
uids = [i.SOPInstanceUID for i in images]
# Segments of both legs and of neighbouring muscles do not overlap: combining them is refused where they would.
labels = seg.get_pixels_by_source_instance(uids, combine_segments=True, ignore_spatial_locations=True, assert_missing_frames_are_empty=True)
assert labels.shape == (len(images), first.Rows, first.Columns), labels.shape
steps = np.diff([float(i.ImagePositionPatient[2]) for i in images])
voxel = float(first.PixelSpacing[0]) * float(first.PixelSpacing[1]) * float(np.abs(steps).mean())
groups = sr.content.get_volumetric_roi_measurement_groups()
assert groups and len(groups) == len(seg.segment_numbers), (len(groups), len(seg.segment_numbers))
for g in groups:
    number = g.referenced_segment.referenced_segment_numbers[0]
    d = seg.get_segment_description(number)
    assert g.tracking_uid == d.tracking_uid, "tracking UID differs between report and segmentation"
    assert g.referenced_segment.referenced_sop_instance_uid == seg.SOPInstanceUID
    volume = next(m for m in g.get_measurements() if m.name.meaning == "Volume")
    scale = {"mm3": 1.0, "ml": 1000.0, "cm3": 1000.0, "mL": 1000.0}[volume.unit.value]
    counted = int((labels == number).sum()) * voxel
    assert counted > 0 and abs(volume.value * scale - counted) <= 0.01 * counted + 1, (volume.value, volume.unit.value, counted)
    print("segment", number, d.segment_label, f"{volume.value:g} {volume.unit.value}, counted {counted:.0f} mm3")
