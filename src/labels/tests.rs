use std::io::Write;

use proptest::prelude::*;

use super::*;

fn map(pairs: &[(&str, u8)]) -> BTreeMap<String, u8> {
    pairs.iter().map(|(k, v)| (k.to_string(), *v)).collect()
}

fn written(bytes: &[u8]) -> tempfile::NamedTempFile {
    let mut f = tempfile::NamedTempFile::new().unwrap();
    f.write_all(bytes).unwrap();
    f
}

fn image() -> Geometry {
    let mut g = Geometry::axial([4, 3, 2], [0.5, 0.5, 5.0]);
    g.origin = [-10.0, 20.0, -30.0];
    g
}

fn nrrd(space: &str, origin: &str, directions: &str, kind: &str, endian: &str, data: &[u8]) -> Vec<u8> {
    let mut b = format!(
        "NRRD0004\n# a comment\ntype: {kind}\ndimension: 3\nspace: {space}\nsizes: 4 3 2\nspace directions: {directions}\n\
         kinds: domain domain domain\nendian: {endian}\nencoding: raw\nspace origin: {origin}\n\n"
    )
    .into_bytes();
    b.extend_from_slice(data);
    b
}

#[test]
fn nrrd_in_lps_and_ras_and_either_byte_order_land_on_the_same_voxels() {
    let values: Vec<u16> = (0..24).map(|i| i % 3).collect();
    let little: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let big: Vec<u8> = values.iter().flat_map(|v| v.to_be_bytes()).collect();
    let lps = "(0.5,0,0) (0,0.5,0) (0,0,5)";
    let a = written(&nrrd("left-posterior-superior", "(-10,20,-30)", lps, "short", "little", &little));
    let ras = "(-0.5,0,0) (0,-0.5,0) (0,0,5)";
    let b = written(&nrrd("right-anterior-superior", "(10,-20,-30)", ras, "unsigned short", "big", &big));
    let m = map(&[("1", 7), ("2", 9)]);
    let want: Vec<u8> = values.iter().map(|v| [0, 7, 9][*v as usize]).collect();
    for f in [a, b] {
        let labels = LabelImage::load(f.path()).unwrap().onto(&image(), &m, None, f.path()).unwrap();
        assert_eq!(labels.data, want);
    }
    // Written with the slices from the head down: the geometry, not the order, decides.
    let c = written(&nrrd("lps", "(-10,20,-25)", "(0.5,0,0) (0,0.5,0) (0,0,-5)", "short", "little", &little));
    let labels = LabelImage::load(c.path()).unwrap().onto(&image(), &m, None, c.path()).unwrap();
    assert_eq!(labels.data, [&want[12..], &want[..12]].concat());
}

#[test]
fn a_grid_that_differs_is_refused_with_the_remedy() {
    let data = vec![1u8; 24];
    let said = |origin: &str, directions: &str| {
        let f = written(&nrrd("lps", origin, directions, "uchar", "little", &data));
        LabelImage::load(f.path()).unwrap().onto(&image(), &map(&[("1", 1)]), None, f.path()).unwrap_err().to_string()
    };
    assert!(said("(-9.8,20,-30)", "(0.5,0,0) (0,0.5,0) (0,0,5)").contains("0.40 voxels beside"));
    assert!(said("(-10,20,-30)", "(0.7,0,0) (0,0.5,0) (0,0,5)").contains("grid differs"));
    assert!(said("(90,20,-30)", "(0.5,0,0) (0,0.5,0) (0,0,5)").contains("outside the image"));
}

#[test]
fn an_offset_places_a_cropped_grid() {
    let f = written(&nrrd("lps", "(500,0,0)", "(0.5,0,0) (0,0.5,0) (0,0,5)", "uchar", "little", &[1u8; 24]));
    let mut g = Geometry::axial([8, 8, 3], [0.5, 0.5, 5.0]);
    g.origin = [1.0; 3];
    let labels = LabelImage::load(f.path()).unwrap().onto(&g, &map(&[("1", 1)]), Some([3, 2, 1]), f.path()).unwrap();
    assert_eq!(labels.count(1), 24);
    assert_eq!(labels.data[(8 + 2) * 8 + 3], 1);
    assert_eq!(labels.data[(8 + 2) * 8 + 2], 0);
}

#[test]
fn seg_nrrd_layers_overlap_and_are_found_by_name() {
    // Two layers on three voxels: A on 0 and 1, B on 1 and 2.
    let header = "NRRD0005\ntype: unsigned char\ndimension: 4\nspace: lps\nsizes: 2 3 1 1\n\
         space directions: none (1,0,0) (0,1,0) (0,0,1)\nkinds: list domain domain domain\nencoding: gzip\n\
         space origin: (0,0,0)\nSegment0_ID:=Segment_1\nSegment0_Name:=Vastus Lateralis\nSegment1_ID:=Segment_2\n\
         Segment1_Name:=B\nSegment1_LabelValue:=3\nSegment1_Layer:=1\n\n";
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(&[1, 0, 1, 3, 0, 3]).unwrap();
    let f = written(&[header.as_bytes(), &gz.finish().unwrap()].concat());
    let l = LabelImage::load(f.path()).unwrap();
    let g = Geometry::axial([3, 1, 1], [1.0; 3]);
    let onto = |m: &[(&str, u8)]| l.onto(&g, &map(m), None, f.path()).map(|l| l.data);
    assert_eq!(onto(&[("vastus lateralis", 1), ("B", 2)]).unwrap(), [1, 1, 2]);
    assert_eq!(onto(&[("2", 4)]).unwrap(), [0, 4, 4]);
    assert!(onto(&[("Gracilis", 1)]).unwrap_err().to_string().contains("1 Vastus Lateralis, 2 B"));
}

fn nifti(sform: bool, values: &[u8]) -> Vec<u8> {
    let mut h = vec![0u8; 352];
    h[0..4].copy_from_slice(&348i32.to_le_bytes());
    for (i, v) in [3i16, 4, 3, 2, 1, 1, 1, 1].iter().enumerate() {
        h[40 + 2 * i..42 + 2 * i].copy_from_slice(&v.to_le_bytes());
    }
    h[70..72].copy_from_slice(&2i16.to_le_bytes());
    h[108..112].copy_from_slice(&352f32.to_le_bytes());
    if sform {
        h[254..256].copy_from_slice(&1i16.to_le_bytes());
        let rows = [[-0.5f32, 0.0, 0.0, 10.0], [0.0, -0.5, 0.0, -20.0], [0.0, 0.0, 5.0, -30.0]];
        for (i, v) in rows.iter().flatten().enumerate() {
            h[280 + 4 * i..284 + 4 * i].copy_from_slice(&v.to_le_bytes());
        }
    } else {
        // The same grid as a rotation by 180 degrees about z: quaternion (0, 0, 0, 1).
        h[252..254].copy_from_slice(&1i16.to_le_bytes());
        let f = [(76, 1.0f32), (80, 0.5), (84, 0.5), (88, 5.0), (264, 1.0), (268, 10.0), (272, -20.0), (276, -30.0)];
        for (o, v) in f {
            h[o..o + 4].copy_from_slice(&v.to_le_bytes());
        }
    }
    h[344..348].copy_from_slice(b"n+1\0");
    h.extend_from_slice(values);
    h
}

#[test]
fn nifti_sform_and_qform_give_the_image_grid_packed_or_not() {
    let values: Vec<u8> = (0..24).map(|i| i % 5).collect();
    let m = map(&[("1", 1), ("2", 2), ("3", 3), ("4", 4)]);
    for sform in [true, false] {
        let plain = nifti(sform, &values);
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(&plain).unwrap();
        for bytes in [plain, gz.finish().unwrap()] {
            let f = written(&bytes);
            let labels = LabelImage::load(f.path()).unwrap().onto(&image(), &m, None, f.path()).unwrap();
            assert_eq!(labels.data, values, "sform {sform}");
        }
    }
}

#[test]
fn what_is_cut_short_or_no_label_is_said() {
    let said = |bytes: &[u8]| LabelImage::load(written(bytes).path()).unwrap_err().to_string();
    assert!(said(b"hello").contains("neither NRRD"));
    assert!(said(&nifti(true, &[0; 3])).contains("cut short"));
    let lps = "(0.5,0,0) (0,0.5,0) (0,0,5)";
    assert!(said(&nrrd("lps", "(0,0,0)", lps, "short", "little", &[0; 9])).contains("cut short"));
    assert!(said(&nrrd("lps", "(0,0,0)", lps, "short", "little", &[255; 48])).contains("no label"));
    let huge = b"NRRD0004\ntype: uchar\ndimension: 3\nsizes: 4000000000 4000000000 9\nencoding: raw\n\n";
    assert!(said(huge).contains("not possible"));
}

/// A DICOM SEG of 2 x 2 pixels with one segment, and a frame at each position.
fn dicom_seg(positions: &[[f64; 3]]) -> tempfile::NamedTempFile {
    use dicom_core::value::{DataSetSequence, PrimitiveValue};
    use dicom_core::{DataElement, Length, Tag, VR};
    use dicom_dictionary_std::tags;
    use dicom_object::{FileMetaTableBuilder, InMemDicomObject};

    fn item(elements: Vec<DataElement<InMemDicomObject>>) -> InMemDicomObject {
        InMemDicomObject::from_element_iter(elements)
    }
    let sequence = |tag: Tag, items: Vec<InMemDicomObject>| {
        DataElement::new(tag, VR::SQ, DataSetSequence::new(items, Length::UNDEFINED))
    };
    let text = |tag: Tag, vr: VR, v: &str| DataElement::new(tag, vr, PrimitiveValue::from(v));
    let us = |tag: Tag, v: u16| DataElement::new(tag, VR::US, PrimitiveValue::from(v));
    let group = |tag: Tag, e: DataElement<InMemDicomObject>| sequence(tag, vec![item(vec![e])]);
    let frames = positions.iter().map(|p| {
        let place = p.map(|v| v.to_string()).join("\\");
        item(vec![
            group(tags::PLANE_POSITION_SEQUENCE, text(tags::IMAGE_POSITION_PATIENT, VR::DS, &place)),
            group(tags::SEGMENT_IDENTIFICATION_SEQUENCE, us(tags::REFERENCED_SEGMENT_NUMBER, 1)),
        ])
    });
    let shared = item(vec![
        group(tags::PLANE_ORIENTATION_SEQUENCE, text(tags::IMAGE_ORIENTATION_PATIENT, VR::DS, "1\\0\\0\\0\\1\\0")),
        group(tags::PIXEL_MEASURES_SEQUENCE, text(tags::PIXEL_SPACING, VR::DS, "1\\1")),
    ]);
    let class = "1.2.840.10008.5.1.4.1.1.66.4";
    let object = item(vec![
        text(tags::SOP_CLASS_UID, VR::UI, class),
        text(tags::SOP_INSTANCE_UID, VR::UI, "2.25.1"),
        us(tags::ROWS, 2),
        us(tags::COLUMNS, 2),
        us(tags::BITS_ALLOCATED, 1),
        text(tags::SEGMENTATION_TYPE, VR::CS, "BINARY"),
        group(tags::SEGMENT_SEQUENCE, us(tags::SEGMENT_NUMBER, 1)),
        sequence(tags::SHARED_FUNCTIONAL_GROUPS_SEQUENCE, vec![shared]),
        sequence(tags::PER_FRAME_FUNCTIONAL_GROUPS_SEQUENCE, frames.collect()),
        DataElement::new(tags::PIXEL_DATA, VR::OB, PrimitiveValue::U8(vec![0xff; 4].into())),
    ]);
    let meta = FileMetaTableBuilder::new()
        .media_storage_sop_class_uid(class)
        .media_storage_sop_instance_uid("2.25.1")
        .transfer_syntax("1.2.840.10008.1.2.1");
    let f = tempfile::NamedTempFile::new().unwrap();
    object.with_meta(meta).unwrap().write_to_file(f.path()).unwrap();
    f
}

#[test]
fn frames_beside_one_another_are_no_volume() {
    let l = LabelImage::load(dicom_seg(&[[0.0, 0.0, 0.0], [0.1, 0.0, 5.0]]).path()).unwrap();
    assert_eq!((l.dims, l.segments.len()), ([2, 2, 2], 1));
    let said = LabelImage::load(dicom_seg(&[[0.0, 0.0, 0.0], [20.0, 0.0, 5.0]]).path()).unwrap_err().to_string();
    assert!(said.contains("do not lie above one another"), "{said}");
}

#[test]
fn a_segmentation_is_parsed_within_bounds() {
    // Sequences of items of sequences, 20,000 deep, after a file meta information that names the transfer syntax.
    let syntax = b"1.2.840.10008.1.2.1\0";
    let mut bytes = [&[0u8; 128][..], b"DICM"].concat();
    bytes.extend([2, 0, 0, 0, b'U', b'L', 4, 0, 28, 0, 0, 0]);
    bytes.extend([2, 0, 0x10, 0, b'U', b'I', 20, 0]);
    bytes.extend(syntax);
    let whole = bytes.len();
    for _ in 0..20_000 {
        bytes.extend([0x40, 0, 0x30, 0xA7, b'S', b'Q', 0, 0, 0xFF, 0xFF, 0xFF, 0xFF]);
        bytes.extend([0xFE, 0xFF, 0, 0xE0, 0xFF, 0xFF, 0xFF, 0xFF]);
    }
    let said = |bytes: &[u8]| LabelImage::load(written(bytes).path()).unwrap_err().to_string();
    assert!(said(&bytes).contains("nested deeper than 64"));
    // One byte less of meta information, and another reader would begin elsewhere.
    bytes.truncate(whole);
    bytes[140] = 27;
    assert!(said(&bytes).contains("length of the file meta information"));
}

#[test]
fn an_image_named_as_its_labels_is_said_and_masks_are_bounded() {
    // 64 x 64 x 1 sixteen-bit values: 0 to 4095, as an image has.
    let volume = |values: &mut dyn Iterator<Item = i16>| {
        let mut h = nifti(true, &[]);
        for (i, v) in [64i16, 64, 1].iter().enumerate() {
            h[42 + 2 * i..44 + 2 * i].copy_from_slice(&v.to_le_bytes());
        }
        h[70..72].copy_from_slice(&4i16.to_le_bytes());
        h.extend(values.flat_map(i16::to_le_bytes));
        written(&h)
    };
    let said = LabelImage::load(volume(&mut (0..4096i16)).path()).unwrap_err().to_string();
    assert!(said.contains("4095 different values: is this an image?"), "{said}");

    let f = volume(&mut (0..4096i16).map(|i| i % 1001));
    let l = LabelImage::load(f.path()).unwrap();
    assert_eq!(l.segments.len(), 1000);
    let grid = |n: usize| Geometry::axial([n, n, 1], [0.5, 0.5, 5.0]);
    assert_eq!(l.masks(&grid(64), Some([0; 3]), f.path()).unwrap().len(), 1000);
    let said = l.masks(&grid(2048), Some([0; 3]), f.path()).unwrap_err().to_string();
    assert!(said.contains("1000 segments of 4194304 voxels"), "{said}");
}

proptest! {
    #[test]
    fn broken_headers_never_abort(at in 0usize..400, byte: u8, which in 0usize..2) {
        let mut b = match which {
            0 => nrrd("lps", "(0,0,0)", "(0.5,0,0) (0,0.5,0) (0,0,5)", "uchar", "little", &[1; 24]),
            _ => nifti(true, &[1; 24]),
        };
        let n = b.len();
        b[at % n] = byte;
        let f = written(&b);
        if let Ok(l) = LabelImage::load(f.path()) {
            let _ = l.onto(&image(), &map(&[("1", 1)]), None, f.path());
        }
    }
}
