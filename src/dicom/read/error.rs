//! Why a DICOM file was refused, in words that name the cause and the remedy.

use std::path::{Path, PathBuf};

/// A refusal with the file it concerns.
#[derive(Debug, thiserror::Error)]
#[error("{}: {cause}", path.display())]
pub struct ReadError {
    /// The file.
    pub path: PathBuf,
    /// Why it was refused.
    pub cause: ReadCause,
}

impl ReadError {
    /// A refusal of `path`.
    pub fn new(path: &Path, cause: ReadCause) -> Self {
        ReadError { path: path.to_path_buf(), cause }
    }
}

/// Why a file was refused.
#[derive(Debug, thiserror::Error)]
pub enum ReadCause {
    /// The system could not read it.
    #[error("cannot be read: {0}; check the path and its permissions")]
    Io(#[from] std::io::Error),
    /// No `DICM` at byte 128.
    #[error("not a DICOM file: no DICM mark at byte 128; export it again with file meta information (DICOM part 10)")]
    NotDicom,
    /// More bytes than are read.
    #[error("{bytes} bytes are more than the {limit} that are read; raise receive.max_object_mb or send it in parts")]
    TooLarge {
        /// Size of the file or of its inflated data set.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// File meta information without a transfer syntax.
    #[error(
        "no Transfer Syntax UID (0002,0010) in the file meta information, so its bytes cannot be interpreted; export it again"
    )]
    NoTransferSyntax,
    /// A transfer syntax without a decoder here.
    #[error(
        "transfer syntax {uid} ({name}) has no decoder here; send it uncompressed or as JPEG Lossless, JPEG-LS, JPEG 2000 or RLE"
    )]
    TransferSyntax {
        /// Its UID.
        uid: String,
        /// Its name, where known.
        name: String,
    },
    /// Sequences nested deeper than any real object.
    #[error(
        "sequences nested deeper than {limit} at byte {at}: no real object does that; refused as hostile or broken"
    )]
    TooDeep {
        /// The limit.
        limit: usize,
        /// Byte offset in the data set's file.
        at: usize,
    },
    /// More elements than any real object.
    #[error("more than {limit} elements: refused as hostile or broken")]
    TooMany {
        /// The limit.
        limit: usize,
    },
    /// An element reaches over the end of what holds it.
    #[error("truncated: element {tag} at byte {at} claims {claimed} bytes, {left} are left; send the object again")]
    Truncated {
        /// `(gggg,eeee)`.
        tag: String,
        /// Byte offset.
        at: usize,
        /// Its length field.
        claimed: u64,
        /// Bytes left.
        left: u64,
    },
    /// Bytes that are not DICOM elements.
    #[error("broken encoding at byte {at}: {what}; send the object again")]
    Encoding {
        /// Byte offset.
        at: usize,
        /// What was found.
        what: String,
    },
    /// An attribute that is needed is missing or empty.
    #[error("{name} {tag} is missing or empty; the object is incomplete, export it again")]
    Missing {
        /// `(gggg,eeee)`.
        tag: &'static str,
        /// The attribute's name.
        name: &'static str,
    },
    /// An attribute with a value that cannot be used.
    #[error("{name} is {value}: {problem}")]
    Value {
        /// The attribute's name.
        name: &'static str,
        /// What stands there.
        value: String,
        /// Why it cannot be used.
        problem: &'static str,
    },
    /// No pixels.
    #[error("no Pixel Data (7FE0,0010): the object ({sop_class}) holds no image")]
    NoPixelData {
        /// SOP class UID.
        sop_class: String,
    },
    /// More than one sample per pixel.
    #[error("colour image ({samples} samples per pixel, {photometric}): only grey MR images are read")]
    Colour {
        /// Samples per Pixel.
        samples: u16,
        /// Photometric Interpretation.
        photometric: String,
    },
    /// Decoded size over the bound.
    #[error("{columns} x {rows} x {frames} pixels decode to {bytes} bytes, more than the {limit} allowed")]
    TooManyPixels {
        /// Columns.
        columns: u64,
        /// Rows.
        rows: u64,
        /// Frames.
        frames: u64,
        /// Decoded bytes.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// Fewer pixel bytes than the dimensions ask for.
    #[error(
        "pixel data is truncated: {have} bytes where {columns} x {rows} x {frames} pixels of {bits} bits need {need}; send the object again"
    )]
    ShortPixels {
        /// Bytes there are.
        have: u64,
        /// Bytes needed.
        need: u64,
        /// Columns.
        columns: u16,
        /// Rows.
        rows: u16,
        /// Frames.
        frames: u32,
        /// Bits allocated.
        bits: u16,
    },
    /// Compressed frames do not match Number of Frames.
    #[error(
        "{fragments} compressed fragments for {frames} frames and no offset table that maps them; send the object again"
    )]
    Fragments {
        /// Fragments found.
        fragments: usize,
        /// Number of Frames.
        frames: u32,
    },
    /// A frame that does not exist was asked for.
    #[error("frame {frame} asked for, the object has {frames}")]
    NoSuchFrame {
        /// From 1.
        frame: u32,
        /// Number of Frames.
        frames: u32,
    },
    /// A decoder refused a frame.
    #[error("frame {frame} ({syntax}) does not decode: {what}; send it uncompressed")]
    Decode {
        /// From 1.
        frame: u32,
        /// The codec's name.
        syntax: &'static str,
        /// The decoder's words.
        what: String,
    },
}

impl ReadCause {
    /// A stable word for logs, metrics and refusals.
    pub fn code(&self) -> &'static str {
        match self {
            ReadCause::Io(_) => "IO",
            ReadCause::NotDicom => "NOT_DICOM",
            ReadCause::TooLarge { .. } => "TOO_LARGE",
            ReadCause::NoTransferSyntax => "NO_TRANSFER_SYNTAX",
            ReadCause::TransferSyntax { .. } => "TRANSFER_SYNTAX",
            ReadCause::TooDeep { .. } => "TOO_DEEP",
            ReadCause::TooMany { .. } => "TOO_MANY_ELEMENTS",
            ReadCause::Truncated { .. } => "TRUNCATED",
            ReadCause::Encoding { .. } => "ENCODING",
            ReadCause::Missing { .. } => "MISSING_ATTRIBUTE",
            ReadCause::Value { .. } => "BAD_VALUE",
            ReadCause::NoPixelData { .. } => "NO_PIXEL_DATA",
            ReadCause::Colour { .. } => "COLOUR",
            ReadCause::TooManyPixels { .. } => "TOO_MANY_PIXELS",
            ReadCause::ShortPixels { .. } => "SHORT_PIXELS",
            ReadCause::Fragments { .. } => "FRAGMENTS",
            ReadCause::NoSuchFrame { .. } => "NO_SUCH_FRAME",
            ReadCause::Decode { .. } => "DECODE",
        }
    }
}
