"""Writes a 3-D NIfTI volume as a folder of MR DICOM images, so that `scanside survey` reads it. Headers are made up: no patient, no date.
Usage: nifti_to_dicom.py IN.nii.gz OUT_FOLDER"""
import os
import sys

import numpy as np
import pydicom
import SimpleITK
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

source, folder = sys.argv[1:3]
image = SimpleITK.ReadImage(source, SimpleITK.sitkFloat32)
data = SimpleITK.GetArrayFromImage(image)
top = max(float(np.percentile(data, 99.9)), 1e-6)
data = np.clip(data / top * 4000.0, 0, 4095).astype(np.uint16)
direction = np.array(image.GetDirection()).reshape(3, 3)
name = os.path.basename(source)
study, series, frame = (generate_uid(entropy_srcs=[name, kind]) for kind in ("study", "series", "frame"))
os.makedirs(folder, exist_ok=True)
for z in range(data.shape[0]):
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[name, str(z)])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    d = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    d.SOPClassUID, d.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    d.StudyInstanceUID, d.SeriesInstanceUID, d.FrameOfReferenceUID = study, series, frame
    d.Modality, d.BodyPartExamined, d.SeriesDescription = "MR", "THIGH", name
    d.PatientName = d.PatientID = d.StudyID = d.AccessionNumber = d.StudyDate = d.StudyTime = ""
    d.ImageType = ["ORIGINAL", "PRIMARY"]
    d.SeriesNumber, d.InstanceNumber = 1, z + 1
    d.ImagePositionPatient = [f"{v:.6g}" for v in image.TransformIndexToPhysicalPoint((0, 0, z))]
    d.ImageOrientationPatient = [f"{v:.6g}" for v in [*direction[:, 0], *direction[:, 1]]]
    sx, sy, sz = image.GetSpacing()
    d.PixelSpacing, d.SliceThickness, d.SpacingBetweenSlices = [f"{sy:.6g}", f"{sx:.6g}"], f"{sz:.6g}", f"{sz:.6g}"
    d.Rows, d.Columns = data.shape[1:]
    d.SamplesPerPixel, d.PhotometricInterpretation = 1, "MONOCHROME2"
    d.BitsAllocated, d.BitsStored, d.HighBit, d.PixelRepresentation = 16, 12, 11, 0
    d.PixelData = data[z].tobytes()
    d.save_as(os.path.join(folder, f"{z:03d}.dcm"), enforce_file_format=True)
