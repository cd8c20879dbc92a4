//! Arrays on a grid: intensities, labels and single planes.

use super::Geometry;

/// Intensities on a grid; index `(slice * rows + row) * columns + column`.
#[derive(Clone, Debug)]
pub struct Volume {
    /// The grid.
    pub geometry: Geometry,
    /// Values after the modality's rescale.
    pub data: Vec<f32>,
}

/// Labels on a grid, indexed as a [`Volume`]; 0 is background.
#[derive(Clone, Debug, PartialEq)]
pub struct LabelMap {
    /// The grid.
    pub geometry: Geometry,
    /// One label per voxel.
    pub data: Vec<u8>,
}

/// One 2-D plane, row by row.
#[derive(Clone, Debug, PartialEq)]
pub struct Plane<T> {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `height * width` values.
    pub data: Vec<T>,
}

impl<T: Copy> Plane<T> {
    /// A plane filled with one value.
    pub fn filled(width: usize, height: usize, value: T) -> Self {
        Plane { width, height, data: vec![value; width * height] }
    }
    /// The value at a column and row inside the plane.
    pub fn at(&self, x: usize, y: usize) -> T {
        self.data[y * self.width + x]
    }
}

impl Volume {
    /// Slice `z` as a plane.
    pub fn plane(&self, z: usize) -> Plane<f32> {
        plane(&self.geometry, &self.data, z)
    }
}

impl LabelMap {
    /// An empty label map.
    pub fn empty(geometry: Geometry) -> Self {
        let n = geometry.voxels();
        LabelMap { geometry, data: vec![0; n] }
    }
    /// Slice `z` as a plane.
    pub fn plane(&self, z: usize) -> Plane<u8> {
        plane(&self.geometry, &self.data, z)
    }
    /// Number of voxels that carry `label`.
    pub fn count(&self, label: u8) -> usize {
        self.data.iter().filter(|&&v| v == label).count()
    }
}

fn plane<T: Copy>(geometry: &Geometry, data: &[T], z: usize) -> Plane<T> {
    let n = geometry.plane();
    Plane { width: geometry.dims[0], height: geometry.dims[1], data: data[z * n..(z + 1) * n].to_vec() }
}
