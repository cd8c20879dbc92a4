//! Logs go to the journal under systemd, with fields, and to standard error elsewhere.

/// The program's own part of the log; what libraries say is held back, see [`heard`].
const OWN: &str = "scanside";

/// Starts logging; `SCANSIDE_LOG` sets the level (`warn`, `info`, `debug`), `info` unless told otherwise.
pub(super) fn init() {
    let wanted = std::env::var("SCANSIDE_LOG").unwrap_or_else(|_| "info".into());
    let level = wanted.parse().unwrap_or(log::LevelFilter::Info);
    #[cfg(target_os = "linux")]
    if systemd_journal_logger::connected_to_journal()
        && let Ok(journal) = systemd_journal_logger::JournalLog::new()
    {
        let journal = journal
            .with_syslog_identifier(OWN.into())
            .with_extra_fields([("SCANSIDE_VERSION", env!("CARGO_PKG_VERSION"))]);
        if log::set_boxed_logger(Box::new(Journal { journal, level })).is_ok() {
            log::set_max_level(level.max(log::LevelFilter::Warn));
            return;
        }
    }
    let _ = env_logger::Builder::new()
        .filter_level(log::LevelFilter::Warn)
        .filter_module(OWN, level)
        .format_target(false)
        .try_init();
}

/// Whether a message is let through. Libraries stay quiet unless they warn: dicom-rs logs element values at lower levels, and those are
/// patient data.
#[cfg(target_os = "linux")]
fn heard(target: &str, level: log::Level, own: log::LevelFilter) -> bool {
    let ours = target.strip_prefix(OWN).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"));
    level <= if ours { own } else { log::LevelFilter::Warn }
}

/// The journal behind the filter that its own logger lacks.
#[cfg(target_os = "linux")]
struct Journal {
    journal: systemd_journal_logger::JournalLog,
    level: log::LevelFilter,
}

#[cfg(target_os = "linux")]
impl log::Log for Journal {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        heard(metadata.target(), metadata.level(), self.level)
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            self.journal.log(record);
        }
    }

    fn flush(&self) {}
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use log::{Level, LevelFilter};

    #[test]
    fn libraries_are_held_back_at_every_level() {
        for own in [LevelFilter::Info, LevelFilter::Debug, LevelFilter::Trace] {
            assert!(!heard("dicom_object::mem", Level::Debug, own));
            assert!(!heard("scansidelike", Level::Info, own));
            assert!(heard("dicom_ul", Level::Warn, own));
        }
        assert!(heard("scanside::daemon", Level::Debug, LevelFilter::Debug));
        assert!(!heard("scanside::daemon", Level::Debug, LevelFilter::Info));
        assert!(!heard("scanside", Level::Info, LevelFilter::Warn));
    }
}
