//! DIMSE statuses: what we answer, and what an answer means for a sender (PS3.4 B.2.3, PS3.7 Annex C).

/// Success.
pub const SUCCESS: u16 = 0x0000;
/// Processing failure.
pub const PROCESSING_FAILURE: u16 = 0x0110;
/// The SOP Instance UID violates the rules for UIDs.
pub const INVALID_SOP_INSTANCE: u16 = 0x0117;
/// SOP class not supported.
pub const SOP_CLASS_NOT_SUPPORTED: u16 = 0x0122;
/// The operation is not one of those agreed on.
pub const UNRECOGNIZED_OPERATION: u16 = 0x0211;
/// A parameter of the command is missing or malformed.
pub const MISTYPED_ARGUMENT: u16 = 0x0212;
/// Refused: out of resources.
pub const OUT_OF_RESOURCES: u16 = 0xA700;
/// Error: data set does not match the command.
pub const DATA_SET_MISMATCH: u16 = 0xA900;
/// Error: cannot understand.
pub const CANNOT_UNDERSTAND: u16 = 0xC000;

/// A refused operation: its status and the cause in words that hold no patient data.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{status:04X}: {comment}")]
pub struct Refusal {
    /// The DIMSE status.
    pub status: u16,
    /// Goes to the sender as Error Comment (0000,0902), cut to 64 characters.
    pub comment: String,
}

impl Refusal {
    /// A refusal with this status for this reason.
    pub fn new(status: u16, comment: impl Into<String>) -> Self {
        Refusal { status, comment: comment.into() }
    }
}

/// What an answer to a C-STORE means for the sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// Stored.
    Success,
    /// Stored, with a remark.
    Warning,
    /// Not stored; the same request may succeed later.
    Transient,
    /// Not stored; the same request will fail again.
    Permanent,
}

/// Classifies the status of a C-STORE response.
pub fn meaning(status: u16) -> Meaning {
    match status {
        SUCCESS => Meaning::Success,
        0x0001 | 0x0107 | 0x0116 | 0xB000..=0xBFFF => Meaning::Warning,
        // Out of resources, processing failure, duplicate invocation, resource limitation.
        0xA700..=0xA7FF | PROCESSING_FAILURE | 0x0210 | 0x0213 => Meaning::Transient,
        _ => Meaning::Permanent,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_classified() {
        for (status, want) in [
            (0x0000, Meaning::Success),
            (0xB000, Meaning::Warning),
            (0xB007, Meaning::Warning),
            (0xA700, Meaning::Transient),
            (0x0110, Meaning::Transient),
            (0x0122, Meaning::Permanent),
            (0xA900, Meaning::Permanent),
            (0xC000, Meaning::Permanent),
        ] {
            assert_eq!(meaning(status), want, "{status:04X}");
        }
    }
}
