//! The frames of an enhanced multi-frame object, from its shared and per-frame functional groups.

use std::collections::HashMap;

use dicom_core::Tag;
use dicom_dictionary_std::tags;

use super::error::ReadCause;
use super::header::{FrameHeader, InstanceHeader, side};
use super::values::Item;

/// Most frames of an object, as of a label object.
const MOST_FRAMES: usize = 65_536;
/// Most elements of one shared group, and groups that are shared: every frame looks into them.
const MOST_SHARED: usize = 256;

/// The first item of each shared group, looked up once for all frames.
fn shared_groups(root: Item<'_>) -> Result<HashMap<Tag, Item<'_>>, ReadCause> {
    let mut groups = HashMap::new();
    let Some(shared) = root.item(tags::SHARED_FUNCTIONAL_GROUPS_SEQUENCE) else { return Ok(groups) };
    let small = |item: Item<'_>| {
        let n = item.elements().len();
        if n <= MOST_SHARED {
            return Ok(());
        }
        Err(ReadCause::Value {
            name: "Shared Functional Groups Sequence (5200,9229)",
            value: format!("{n} elements in one item"),
            problem: "no scanner writes so many; refused as hostile or broken",
        })
    };
    small(shared)?;
    // Private groups are never asked for; some vendors keep a whole classic header in one.
    for e in shared.elements().iter().filter(|e| e.tag.0 % 2 == 0) {
        if let Some(item) = shared.item(e.tag) {
            small(item)?;
            groups.insert(e.tag, item);
        }
    }
    Ok(groups)
}

/// Unrolls the functional groups: what a frame does not say for itself, the shared groups say.
pub(super) fn frames(root: Item<'_>, header: &mut InstanceHeader) -> Result<Vec<FrameHeader>, ReadCause> {
    let shared = shared_groups(root)?;
    let list: Vec<Item<'_>> = root.items(tags::PER_FRAME_FUNCTIONAL_GROUPS_SEQUENCE).collect();
    if list.len() != header.number_of_frames as usize {
        return Err(ReadCause::Value {
            name: "Number of Frames (0028,0008)",
            value: format!("{} with {} per-frame functional groups", header.number_of_frames, list.len()),
            problem: "the two must agree; send the object again",
        });
    }
    if list.len() > MOST_FRAMES {
        return Err(ReadCause::Value {
            name: "Number of Frames (0028,0008)",
            value: list.len().to_string(),
            problem: "more than 65536 frames are not read; send the object in parts",
        });
    }
    let acquisition = root.number(tags::ACQUISITION_NUMBER).map(|v| v as i64);
    let between = root.number(tags::SPACING_BETWEEN_SLICES);
    let mut frames = Vec::with_capacity(list.len());
    for (i, &own) in list.iter().enumerate() {
        let find = |group: Tag| own.item(group).into_iter().chain(shared.get(&group).copied());
        let number = |group: Tag, tag: Tag| find(group).find_map(|g| g.number(tag));
        let numbers = |group: Tag, tag: Tag| find(group).map(|g| g.numbers(tag)).find(|v| !v.is_empty());
        let content = tags::FRAME_CONTENT_SEQUENCE;
        let image_type = find(tags::MR_IMAGE_FRAME_TYPE_SEQUENCE)
            .map(|g| g.texts(tags::FRAME_TYPE, "Frame Type (0008,9007)"))
            .find(|t| !t.as_ref().is_ok_and(Vec::is_empty))
            .transpose()?;
        if header.laterality.is_none() {
            header.laterality = find(tags::FRAME_ANATOMY_SEQUENCE).find_map(|g| side(&g.text(tags::FRAME_LATERALITY)));
        }
        frames.push(FrameHeader {
            number: i as u32 + 1,
            position: numbers(tags::PLANE_POSITION_SEQUENCE, tags::IMAGE_POSITION_PATIENT)
                .and_then(|v| v.try_into().ok()),
            orientation: numbers(tags::PLANE_ORIENTATION_SEQUENCE, tags::IMAGE_ORIENTATION_PATIENT)
                .and_then(|v| v.try_into().ok()),
            pixel_spacing: numbers(tags::PIXEL_MEASURES_SEQUENCE, tags::PIXEL_SPACING).and_then(|v| v.try_into().ok()),
            slice_thickness: number(tags::PIXEL_MEASURES_SEQUENCE, tags::SLICE_THICKNESS),
            spacing_between_slices: number(tags::PIXEL_MEASURES_SEQUENCE, tags::SPACING_BETWEEN_SLICES).or(between),
            slope: number(tags::PIXEL_VALUE_TRANSFORMATION_SEQUENCE, tags::RESCALE_SLOPE).unwrap_or(1.0),
            intercept: number(tags::PIXEL_VALUE_TRANSFORMATION_SEQUENCE, tags::RESCALE_INTERCEPT).unwrap_or(0.0),
            image_type: image_type.unwrap_or_else(|| header.image_type.clone()),
            echo_time: number(tags::MR_ECHO_SEQUENCE, tags::EFFECTIVE_ECHO_TIME),
            repetition_time: number(tags::MR_TIMING_AND_RELATED_PARAMETERS_SEQUENCE, tags::REPETITION_TIME),
            inversion_time: number(tags::MR_MODIFIER_SEQUENCE, tags::INVERSION_TIMES),
            flip_angle: number(tags::MR_TIMING_AND_RELATED_PARAMETERS_SEQUENCE, tags::FLIP_ANGLE),
            b_value: number(tags::MR_DIFFUSION_SEQUENCE, tags::DIFFUSION_B_VALUE),
            temporal_position: number(content, tags::TEMPORAL_POSITION_INDEX).map(|v| v.max(0.0) as u32),
            trigger_time: number(tags::CARDIAC_SYNCHRONIZATION_SEQUENCE, tags::NOMINAL_CARDIAC_TRIGGER_DELAY_TIME),
            acquisition_number: number(content, tags::FRAME_ACQUISITION_NUMBER).map(|v| v as i64).or(acquisition),
            stack_id: find(content).find_map(|g| g.some_text(tags::STACK_ID)),
            in_stack_position: number(content, tags::IN_STACK_POSITION_NUMBER).map(|v| v.max(0.0) as u32),
            dimension_index: numbers(content, tags::DIMENSION_INDEX_VALUES)
                .unwrap_or_default()
                .into_iter()
                .map(|v| v.max(0.0) as u32)
                .collect(),
        });
    }
    if header.body_part.is_empty()
        && let Some(region) =
            shared.get(&tags::FRAME_ANATOMY_SEQUENCE).and_then(|g| g.item(tags::ANATOMIC_REGION_SEQUENCE))
    {
        header.body_part = region.text(tags::CODE_MEANING).to_uppercase();
    }
    Ok(frames)
}

#[cfg(test)]
mod tests {
    use dicom_core::value::{DataSetSequence, PrimitiveValue};
    use dicom_core::{DataElement, Length, VR};
    use dicom_object::{FileMetaTableBuilder, InMemDicomObject};

    use super::super::header::{ENHANCED_MR, read_header};
    use super::*;

    fn sequence(tag: Tag, items: Vec<InMemDicomObject>) -> DataElement<InMemDicomObject> {
        DataElement::new(tag, VR::SQ, DataSetSequence::new(items, Length::UNDEFINED))
    }

    /// The header of an Enhanced MR object with empty per-frame groups.
    fn read(frames: usize, image_type: &str, shared: InMemDicomObject) -> Result<InstanceHeader, String> {
        let mut o = InMemDicomObject::new_empty();
        let mut text = |tag, vr, v: &str| {
            o.put(DataElement::new(tag, vr, PrimitiveValue::from(v)));
        };
        text(tags::SOP_CLASS_UID, VR::UI, ENHANCED_MR);
        text(tags::SOP_INSTANCE_UID, VR::UI, "2.25.1");
        text(tags::IMAGE_TYPE, VR::CS, image_type);
        text(tags::NUMBER_OF_FRAMES, VR::IS, &frames.to_string());
        o.put(sequence(tags::SHARED_FUNCTIONAL_GROUPS_SEQUENCE, vec![shared]));
        o.put(sequence(tags::PER_FRAME_FUNCTIONAL_GROUPS_SEQUENCE, vec![InMemDicomObject::new_empty(); frames]));
        let meta = FileMetaTableBuilder::new()
            .media_storage_sop_class_uid(ENHANCED_MR)
            .media_storage_sop_instance_uid("2.25.1")
            .transfer_syntax("1.2.840.10008.1.2.1");
        let file = tempfile::NamedTempFile::new().unwrap();
        o.with_meta(meta).unwrap().write_to_file(file.path()).unwrap();
        read_header(file.path()).map_err(|e| e.to_string())
    }

    #[test]
    fn what_every_frame_copies_is_bounded() {
        let empty = InMemDicomObject::new_empty;
        let said = read(3, &"\\".repeat(65_534), empty()).unwrap_err();
        assert!(said.contains("Image Type") && said.contains("65535 values"), "{said}");
        assert!(read(MOST_FRAMES + 1, "ORIGINAL", empty()).unwrap_err().contains("more than 65536 frames"));

        let indices = |n: u32| {
            let mut content = empty();
            let values: Vec<u32> = (1..=n).collect();
            content.put(DataElement::new(tags::DIMENSION_INDEX_VALUES, VR::UL, PrimitiveValue::U32(values.into())));
            let mut shared = empty();
            shared.put(sequence(tags::FRAME_CONTENT_SEQUENCE, vec![content]));
            shared
        };
        let header = read(3, "ORIGINAL\\PRIMARY\\M", indices(3)).unwrap();
        assert!(header.frames.len() == 3 && header.frames.iter().all(|f| f.dimension_index == [1, 2, 3]));
        assert_eq!(header.frames[2].image_type, ["ORIGINAL", "PRIMARY", "M"]);
        let header = read(3, "ORIGINAL", indices(10_000)).unwrap();
        assert!(header.frames.iter().all(|f| f.dimension_index.len() == 64));

        let mut crowded = empty();
        for element in 0..300u16 {
            crowded.put(DataElement::new(Tag(0x0021, 0x1000 + element), VR::LO, PrimitiveValue::from("x")));
        }
        assert!(read(3, "ORIGINAL", crowded).unwrap_err().contains("300 elements in one item"));
    }
}
