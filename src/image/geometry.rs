//! The affine grid of a volume in patient coordinates.

use serde::{Deserialize, Serialize};

/// A regular grid in DICOM patient coordinates (LPS: x grows to the left, y to the back, z to the head), millimetres.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Geometry {
    /// Columns, rows, slices.
    pub dims: [usize; 3],
    /// Distance between voxel centres along columns, rows, slices; millimetres.
    pub spacing: [f64; 3],
    /// Centre of voxel (0, 0, 0); millimetres.
    pub origin: [f64; 3],
    /// Unit vectors of growing column index, row index, slice index.
    pub axes: [[f64; 3]; 3],
}

impl Geometry {
    /// An axial grid at the origin: columns to the patient's left, rows to the back, slices to the head.
    pub fn axial(dims: [usize; 3], spacing: [f64; 3]) -> Self {
        Geometry { dims, spacing, origin: [0.0; 3], axes: [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]] }
    }

    /// Number of voxels.
    pub fn voxels(&self) -> usize {
        self.dims[0] * self.dims[1] * self.dims[2]
    }

    /// Number of voxels in a slice.
    pub fn plane(&self) -> usize {
        self.dims[0] * self.dims[1]
    }

    /// Volume of a voxel, cubic millimetres.
    pub fn voxel_mm3(&self) -> f64 {
        self.spacing[0] * self.spacing[1] * self.spacing[2]
    }

    /// Patient coordinates of a (fractional) voxel index (column, row, slice).
    pub fn to_patient(&self, index: [f64; 3]) -> [f64; 3] {
        let mut p = self.origin;
        for (a, axis) in self.axes.iter().enumerate() {
            for (pc, ac) in p.iter_mut().zip(axis) {
                *pc += ac * index[a] * self.spacing[a];
            }
        }
        p
    }

    /// (Fractional) voxel index of a point in patient coordinates; exact for orthonormal axes.
    pub fn to_index(&self, point: [f64; 3]) -> [f64; 3] {
        let d = [point[0] - self.origin[0], point[1] - self.origin[1], point[2] - self.origin[2]];
        let mut index = [0.0; 3];
        for (a, axis) in self.axes.iter().enumerate() {
            index[a] = (axis[0] * d[0] + axis[1] * d[1] + axis[2] * d[2]) / self.spacing[a];
        }
        index
    }

    /// Whether two grids agree within `mm` at their corners.
    pub fn matches(&self, other: &Geometry, mm: f64) -> bool {
        self.dims == other.dims
            && [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]].iter().all(|c| {
                let i = [0, 1, 2].map(|a| (c[a] * (self.dims[a].max(1) - 1)) as f64);
                let (p, q) = (self.to_patient(i), other.to_patient(i));
                (0..3).map(|k| (p[k] - q[k]).powi(2)).sum::<f64>().sqrt() <= mm
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn index_and_patient_coordinates_are_inverse() {
        let g = Geometry {
            dims: [4, 5, 6],
            spacing: [0.5, 0.75, 5.0],
            origin: [-10.0, 20.0, 3.0],
            axes: [[0.0, 1.0, 0.0], [0.0, 0.0, -1.0], [-1.0, 0.0, 0.0]],
        };
        let p = g.to_patient([1.5, 2.0, 3.0]);
        let i = g.to_index(p);
        for (a, b) in i.iter().zip([1.5, 2.0, 3.0]) {
            assert!((a - b).abs() < 1e-12);
        }
        assert!(g.matches(&g.clone(), 1e-9));
    }
}
