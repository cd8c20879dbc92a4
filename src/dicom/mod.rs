//! DICOM: the network (SCP, SCU) and the objects (read MR; write SEG, SR, SC). Protocol logic apart from I/O.

pub mod net;
pub mod read;
pub mod write;
