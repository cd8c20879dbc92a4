"""Reads a segmentation and a report with highdicom and compares the labels with the expected ones.

usage: results_check.py SEG SR EXPECTED_RAW COLUMNS ROWS SLICES SOURCE...
SOURCE: SOP Instance UIDs in slice order, or one `frames:UID` for the frames of a multi-frame source. Labels are bytes.
Prints what it saw; exits non-zero on a difference.
"""
import sys

import highdicom as hd
import numpy as np

seg_path, sr_path, raw, columns, rows, slices, *sources = sys.argv[1:]
columns, rows, slices = int(columns), int(rows), int(slices)
expected = np.fromfile(raw, dtype=np.uint8).reshape(slices, rows, columns)
seg = hd.seg.segread(seg_path)
options = dict(combine_segments=True, ignore_spatial_locations=True, assert_missing_frames_are_empty=True)
if sources[0].startswith("frames:"):
    frames = list(range(1, slices + 1))
    found = seg.get_pixels_by_source_frame(sources[0].removeprefix("frames:"), frames, **options)
else:
    found = seg.get_pixels_by_source_instance(sources, **options)
assert found.shape == expected.shape, (found.shape, expected.shape)
assert (found == expected).all(), f"{(found != expected).sum()} voxels differ"
for number in seg.segment_numbers:
    d = seg.get_segment_description(number)
    assert str(d.algorithm_type.value) == "AUTOMATIC" and d.tracking_uid
    print("segment", number, d.segment_label, d.segmented_property_type.meaning)
sr = hd.sr.srread(sr_path)
groups = sr.content.get_volumetric_roi_measurement_groups()
assert len(groups) == len(seg.segment_numbers), (len(groups), len(seg.segment_numbers))
for g in groups:
    number = g.referenced_segment.referenced_segment_numbers[0]
    d = seg.get_segment_description(number)
    assert g.tracking_uid == d.tracking_uid, "tracking UID differs between report and segmentation"
    assert g.referenced_segment.referenced_sop_instance_uid == seg.SOPInstanceUID
    names = [m.name.meaning for m in g.get_measurements()]
    assert "Volume" in names and "Image Quality Rating" in names, names
    print("group", g.tracking_identifier, names)
