//! Reads a checkpoint that `torch.save` wrote: a zip archive of one pickle and one file per storage.

use std::collections::{BTreeMap, HashMap};
use std::io::{Cursor, Read};
use std::rc::Rc;

use super::pickle::{self, TensorRef};
use crate::engine::Tensor;

const MAX_PICKLE: u64 = 8 << 20;
const MAX_STORAGE: u64 = 64 << 20;
const MAX_TOTAL: usize = 256 << 20;

/// All f32 tensors of a state dictionary, by name. Integer tensors (`num_batches_tracked`) are left out.
pub(super) fn read_checkpoint(bytes: &[u8]) -> Result<BTreeMap<String, Tensor>, String> {
    let mut archive = zip::ZipArchive::new(Cursor::new(bytes)).map_err(|e| format!("no zip archive: {e}"))?;
    let pickle_name = archive
        .file_names()
        .find(|n| n.ends_with("/data.pkl"))
        .map(str::to_string)
        .ok_or("no data.pkl in the archive: not written by torch.save")?;
    let root = pickle_name.trim_end_matches("data.pkl").to_string();
    let pickled = entry(&mut archive, &pickle_name, MAX_PICKLE)?;

    let mut storages: HashMap<Rc<str>, Vec<f32>> = HashMap::new();
    let mut tensors = BTreeMap::new();
    let mut total = 0;
    for (name, tensor) in pickle::state_dict(&pickled)? {
        match &*tensor.storage_type {
            "FloatStorage" => {}
            "LongStorage" | "IntStorage" => continue,
            other => return Err(format!("tensor {name} has the type {other}; only 32-bit floats are read")),
        }
        if !storages.contains_key(&tensor.storage) {
            let raw = entry(&mut archive, &format!("{root}data/{}", tensor.storage), MAX_STORAGE)?;
            let values: Vec<f32> = raw.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
            total += raw.len();
            if total > MAX_TOTAL {
                return Err("the storages are too large together".into());
            }
            storages.insert(tensor.storage.clone(), values);
        }
        let storage = storages.get(&tensor.storage).ok_or("a storage is missing")?;
        let values = gather(&tensor, storage).ok_or_else(|| format!("tensor {name} reaches outside its storage"))?;
        total += 4 * values.len();
        if total > 2 * MAX_TOTAL {
            return Err("the tensors are too large together".into());
        }
        tensors.insert(name, Tensor { shape: tensor.shape, data: values });
    }
    Ok(tensors)
}

fn entry(archive: &mut zip::ZipArchive<Cursor<&[u8]>>, name: &str, limit: u64) -> Result<Vec<u8>, String> {
    let file = archive.by_name(name).map_err(|e| format!("{name}: {e}"))?;
    let mut out = Vec::new();
    file.take(limit + 1).read_to_end(&mut out).map_err(|e| format!("{name}: {e}"))?;
    if out.len() as u64 > limit {
        return Err(format!("{name} is larger than {limit} bytes"));
    }
    Ok(out)
}

/// The values of a strided view, row-major; `None` when it reaches outside.
fn gather(t: &TensorRef, storage: &[f32]) -> Option<Vec<f32>> {
    let count = t.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
    if count == 0 {
        return Some(Vec::new());
    }
    // A view may not be larger than its storage: strides of zero would blow it up.
    if count > storage.len() {
        return None;
    }
    let mut last = t.offset;
    for (&d, &s) in t.shape.iter().zip(&t.stride) {
        last = last.checked_add((d - 1).checked_mul(s)?)?;
    }
    if last >= storage.len() {
        return None;
    }
    let mut index = vec![0; t.shape.len()];
    let mut at = t.offset;
    let mut out = Vec::with_capacity(count);
    loop {
        out.push(*storage.get(at)?);
        let mut axis = t.shape.len();
        loop {
            if axis == 0 {
                return Some(out);
            }
            axis -= 1;
            index[axis] += 1;
            at += t.stride[axis];
            if index[axis] < t.shape[axis] {
                break;
            }
            at -= t.stride[axis] * t.shape[axis];
            index[axis] = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(offset: usize, shape: &[usize], stride: &[usize]) -> TensorRef {
        TensorRef {
            storage: "0".into(),
            storage_type: "FloatStorage".into(),
            offset,
            shape: shape.into(),
            stride: stride.into(),
        }
    }

    #[test]
    fn views_are_strided_and_bounded() {
        let storage: Vec<f32> = (0..12u8).map(f32::from).collect();
        assert_eq!(gather(&view(0, &[2, 3], &[3, 1]), &storage).unwrap(), [0., 1., 2., 3., 4., 5.]);
        assert_eq!(gather(&view(1, &[3, 2], &[1, 3]), &storage).unwrap(), [1., 4., 2., 5., 3., 6.]);
        assert_eq!(gather(&view(11, &[], &[]), &storage).unwrap(), [11.]);
        assert!(gather(&view(7, &[2, 3], &[3, 1]), &storage).is_none());
        assert!(gather(&view(0, &[1 << 40], &[0]), &storage).is_none());
        assert!(gather(&view(usize::MAX, &[2], &[usize::MAX]), &storage).is_none());
    }

    #[test]
    fn what_is_no_checkpoint_is_refused() {
        assert!(read_checkpoint(b"PK\x03\x04 not really").is_err());
        assert!(read_checkpoint(&[]).is_err());
    }
}
