//! Reading MR images: bounded headers and decoded pixels, with a typed refusal for whatever cannot be read.
//!
//! The parser is our own because its input is hostile: it does not recurse, knows its bounds and keeps patient strings
//! as bytes. Decoders of compressed pixels are called only after the compressed stream's own header was held against
//! the object's rows and columns.

mod codec;
mod enhanced;
mod error;
mod header;
mod jpegls;
mod parse;
mod pixels;
mod values;

pub use error::{ReadCause, ReadError};
pub use header::{CLASSIC_MR, ENHANCED_MR, FrameHeader, InstanceHeader, RawElement, read_header, read_header_with};
pub use parse::{Limits, check};
pub use pixels::{Frame, decode_frame, decode_frames, decode_frames_with};
