//! The frames of an enhanced multi-frame object, from its shared and per-frame functional groups.

use dicom_core::Tag;
use dicom_dictionary_std::tags;

use super::error::ReadCause;
use super::header::{FrameHeader, InstanceHeader, side};
use super::values::Item;

/// Unrolls the functional groups: what a frame does not say for itself, the shared groups say.
pub(super) fn frames(root: Item<'_>, header: &mut InstanceHeader) -> Result<Vec<FrameHeader>, ReadCause> {
    let shared = root.item(tags::SHARED_FUNCTIONAL_GROUPS_SEQUENCE);
    let list: Vec<Item<'_>> = root.items(tags::PER_FRAME_FUNCTIONAL_GROUPS_SEQUENCE).collect();
    if list.len() != header.number_of_frames as usize {
        return Err(ReadCause::Value {
            name: "Number of Frames (0028,0008)",
            value: format!("{} with {} per-frame functional groups", header.number_of_frames, list.len()),
            problem: "the two must agree; send the object again",
        });
    }
    let acquisition = root.number(tags::ACQUISITION_NUMBER).map(|v| v as i64);
    let mut frames = Vec::with_capacity(list.len());
    for (i, &own) in list.iter().enumerate() {
        let find = |group: Tag| own.item(group).into_iter().chain(shared.and_then(|s| s.item(group)));
        let number = |group: Tag, tag: Tag| find(group).find_map(|g| g.number(tag));
        let numbers = |group: Tag, tag: Tag| find(group).map(|g| g.numbers(tag)).find(|v| !v.is_empty());
        let content = tags::FRAME_CONTENT_SEQUENCE;
        let image_type =
            find(tags::MR_IMAGE_FRAME_TYPE_SEQUENCE).map(|g| g.texts(tags::FRAME_TYPE)).find(|t| !t.is_empty());
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
            spacing_between_slices: number(tags::PIXEL_MEASURES_SEQUENCE, tags::SPACING_BETWEEN_SLICES)
                .or_else(|| root.number(tags::SPACING_BETWEEN_SLICES)),
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
        && let Some(region) = shared
            .and_then(|s| s.item(tags::FRAME_ANATOMY_SEQUENCE))
            .and_then(|g| g.item(tags::ANATOMIC_REGION_SEQUENCE))
    {
        header.body_part = region.text(tags::CODE_MEANING).to_uppercase();
    }
    Ok(frames)
}
