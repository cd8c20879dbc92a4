//! The DIMSE command set (PS3.7 Annex E): group 0000 in Implicit VR Little Endian.

use std::collections::BTreeMap;

use super::trim_uid;

/// Largest command set we take, bytes. Real ones have a few hundred.
pub const MAX_COMMAND: usize = 16 * 1024;

/// C-STORE-RQ.
pub const C_STORE_RQ: u16 = 0x0001;
/// C-ECHO-RQ.
pub const C_ECHO_RQ: u16 = 0x0030;
/// C-CANCEL-RQ, which is never answered.
pub const C_CANCEL_RQ: u16 = 0x0FFF;
/// The bit that makes a response of a request.
pub const RESPONSE: u16 = 0x8000;
/// Command Data Set Type: no data set follows.
pub const NO_DATA_SET: u16 = 0x0101;

/// Affected SOP Class UID.
pub const AFFECTED_SOP_CLASS: u16 = 0x0002;
/// Command Field.
pub const COMMAND_FIELD: u16 = 0x0100;
/// Message ID.
pub const MESSAGE_ID: u16 = 0x0110;
/// Message ID Being Responded To.
pub const RESPONDED_TO: u16 = 0x0120;
/// Priority.
pub const PRIORITY: u16 = 0x0700;
/// Command Data Set Type.
pub const DATA_SET_TYPE: u16 = 0x0800;
/// Status.
pub const STATUS: u16 = 0x0900;
/// Error Comment.
pub const ERROR_COMMENT: u16 = 0x0902;
/// Affected SOP Instance UID.
pub const AFFECTED_SOP_INSTANCE: u16 = 0x1000;

/// Why bytes are not a command set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// The bytes end within an element, or an element is longer than what is left.
    #[error("the command set is cut short at byte {0}")]
    Truncated(usize),
    /// An element of another group.
    #[error("the command set has an element of group {0:04X}")]
    Group(u16),
    /// An element that every command must have is missing or has a wrong length.
    #[error("the command set has no usable element (0000,{0:04X})")]
    Missing(u16),
}

/// A command set: the values of group 0000 by element number, without the group length.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Command {
    elements: BTreeMap<u16, Vec<u8>>,
}

impl Command {
    /// Decodes a whole command set. It has a Command Field and a Command Data Set Type afterwards.
    ///
    /// # Errors
    /// [`CommandError`].
    pub fn decode(bytes: &[u8]) -> Result<Command, CommandError> {
        let mut elements = BTreeMap::new();
        let mut at = 0;
        while at < bytes.len() {
            let cut = CommandError::Truncated(at);
            let Some(&[g0, g1, e0, e1, l0, l1, l2, l3]) = bytes.get(at..at + 8) else { return Err(cut) };
            let group = u16::from_le_bytes([g0, g1]);
            if group != 0 {
                return Err(CommandError::Group(group));
            }
            let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
            at += 8;
            let end = at.checked_add(length).ok_or(cut.clone())?;
            let value = bytes.get(at..end).ok_or(cut)?;
            let element = u16::from_le_bytes([e0, e1]);
            if element != 0 {
                elements.insert(element, value.to_vec());
            }
            at = end;
        }
        let command = Command { elements };
        for needed in [COMMAND_FIELD, DATA_SET_TYPE] {
            command.u16(needed).ok_or(CommandError::Missing(needed))?;
        }
        Ok(command)
    }

    /// The command set's bytes, group length first.
    pub fn encode(&self) -> Vec<u8> {
        let length: usize = self.elements.values().map(|v| 8 + v.len()).sum();
        let mut out = Vec::with_capacity(12 + length);
        out.extend_from_slice(&[0, 0, 0, 0, 4, 0, 0, 0]);
        out.extend_from_slice(&(length as u32).to_le_bytes());
        for (element, value) in &self.elements {
            out.extend_from_slice(&[0, 0]);
            out.extend_from_slice(&element.to_le_bytes());
            out.extend_from_slice(&(value.len() as u32).to_le_bytes());
            out.extend_from_slice(value);
        }
        out
    }

    /// Sets an element of VR US.
    pub fn with_u16(mut self, element: u16, value: u16) -> Self {
        self.elements.insert(element, value.to_le_bytes().to_vec());
        self
    }

    /// Sets an element of VR UI, padded with NUL to even length.
    pub fn with_uid(mut self, element: u16, uid: &str) -> Self {
        let mut value = uid.as_bytes().to_vec();
        if value.len() % 2 == 1 {
            value.push(0);
        }
        self.elements.insert(element, value);
        self
    }

    /// Sets an element of VR LO: ASCII, cut to 64 characters, padded with a space.
    pub fn with_text(mut self, element: u16, text: &str) -> Self {
        let mut value: Vec<u8> = text
            .chars()
            .take(64)
            .map(|c| if c.is_ascii() && !c.is_ascii_control() && c != '\\' { c as u8 } else { b'?' })
            .collect();
        if value.len() % 2 == 1 {
            value.push(b' ');
        }
        self.elements.insert(element, value);
        self
    }

    /// An element of VR US, if it is there and two bytes long.
    pub fn u16(&self, element: u16) -> Option<u16> {
        match self.elements.get(&element).map(Vec::as_slice) {
            Some(&[a, b]) => Some(u16::from_le_bytes([a, b])),
            _ => None,
        }
    }

    /// An element of VR UI without its padding; its characters are not checked.
    pub fn uid(&self, element: u16) -> Option<String> {
        self.elements.get(&element).map(|v| trim_uid(v))
    }

    /// An element of VR LO without its padding.
    pub fn text(&self, element: u16) -> Option<String> {
        self.elements.get(&element).map(|v| String::from_utf8_lossy(v).trim().to_string())
    }

    /// The Command Field.
    pub fn field(&self) -> u16 {
        self.u16(COMMAND_FIELD).unwrap_or(0)
    }

    /// Whether a data set follows.
    pub fn has_data_set(&self) -> bool {
        self.u16(DATA_SET_TYPE).is_some_and(|t| t != NO_DATA_SET)
    }

    /// A C-ECHO request.
    pub fn echo_request(message_id: u16) -> Command {
        Command::default()
            .with_uid(AFFECTED_SOP_CLASS, super::VERIFICATION)
            .with_u16(COMMAND_FIELD, C_ECHO_RQ)
            .with_u16(MESSAGE_ID, message_id)
            .with_u16(DATA_SET_TYPE, NO_DATA_SET)
    }

    /// A C-STORE request of medium priority.
    pub fn store_request(message_id: u16, sop_class: &str, sop_instance: &str) -> Command {
        Command::default()
            .with_uid(AFFECTED_SOP_CLASS, sop_class)
            .with_u16(COMMAND_FIELD, C_STORE_RQ)
            .with_u16(MESSAGE_ID, message_id)
            .with_u16(PRIORITY, 0)
            .with_u16(DATA_SET_TYPE, 1)
            .with_uid(AFFECTED_SOP_INSTANCE, sop_instance)
    }

    /// The response to this request, with the identifiers that it names.
    pub fn response(&self, status: u16, comment: Option<&str>) -> Command {
        let mut out = Command::default()
            .with_u16(COMMAND_FIELD, self.field() | RESPONSE)
            .with_u16(RESPONDED_TO, self.u16(MESSAGE_ID).unwrap_or(0))
            .with_u16(DATA_SET_TYPE, NO_DATA_SET)
            .with_u16(STATUS, status);
        for element in [AFFECTED_SOP_CLASS, AFFECTED_SOP_INSTANCE] {
            if let Some(uid) = self.uid(element) {
                out = out.with_uid(element, &uid);
            }
        }
        match comment {
            Some(text) => out.with_text(ERROR_COMMENT, text),
            None => out,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_survives_the_wire() {
        let c = Command::store_request(7, "1.2.840.10008.5.1.4.1.1.4", "1.2.3");
        let d = Command::decode(&c.encode()).unwrap();
        assert_eq!(c, d);
        assert_eq!(d.uid(AFFECTED_SOP_INSTANCE).as_deref(), Some("1.2.3"));
        assert!(d.has_data_set() && d.u16(MESSAGE_ID) == Some(7));
    }

    #[test]
    fn a_response_repeats_the_identifiers_and_cuts_the_comment() {
        let r = Command::store_request(9, "1.2", "1.2.3").response(0xC000, Some(&"é\\x".repeat(50)));
        let r = Command::decode(&r.encode()).unwrap();
        assert_eq!((r.field(), r.u16(RESPONDED_TO), r.u16(STATUS)), (0x8001, Some(9), Some(0xC000)));
        assert_eq!(r.text(ERROR_COMMENT).unwrap().len(), 64);
        assert!(!r.has_data_set());
    }

    #[test]
    fn every_cut_and_every_flipped_byte_is_survived() {
        let whole = Command::store_request(1, "1.2.840.10008.5.1.4.1.1.4", "1.2.3.4").encode();
        for cut in 1..whole.len() {
            let _ = Command::decode(&whole[..cut]);
        }
        for i in 0..whole.len() {
            let mut bad = whole.clone();
            bad[i] ^= 0xFF;
            let _ = Command::decode(&bad);
        }
        assert_eq!(Command::decode(&[8, 0, 0, 0, 0, 0, 0, 0]), Err(CommandError::Group(8)));
        assert!(matches!(Command::decode(&[0, 0, 2, 0, 255, 255, 255, 255]), Err(CommandError::Truncated(0))));
        assert_eq!(Command::decode(&[]), Err(CommandError::Missing(COMMAND_FIELD)));
    }
}
