//! An adapter on probation, as the worker sees it: attempts counted before, cases after, faults at once.

use std::sync::Arc;

use rusqlite::Transaction;
use serde_json::Value;

use super::Begun;
use super::candidate::{judge_probation, served_case};
use super::serving::take_back;
use crate::daemon::{Model, Shared};
use crate::store::StoreError;
use crate::store::bundles::{self, Bundle, Event, State, Why};

/// Most times that the adapter changes between looking and beginning.
const MOST_TRIES: usize = 100;

/// A series begun with an adapter on probation.
pub(crate) struct Probation {
    row: Bundle,
}

/// The model for the next series, as the newest row of the store says, with the attempt counted where it is on probation.
///
/// # Errors
/// The store's.
pub(crate) fn take(shared: &Shared) -> Result<(Arc<Model>, Option<Probation>), StoreError> {
    let here = shared.here();
    for _ in 0..MOST_TRIES {
        let model = shared.models.settle(here)?;
        let Some(id) = model.row() else { return Ok((model, None)) };
        let Some(mut row) = here.store.with_conn(|c| bundles::get(c, id))? else { return Ok((model, None)) };
        match row.state {
            State::Committed => return Ok((model, None)),
            State::Probation { .. } => match here.begin(&mut row)? {
                Begun::Yes => return Ok((model, Some(Probation { row }))),
                Begun::Moved => {}
                Begun::TooOften => {
                    let sentence = format!(
                        "on probation a series was begun {} times and never came to an end",
                        bundles::MAX_ATTEMPTS
                    );
                    let remedy = "see the journal for what ended it; the adapter before it serves on";
                    take_back(here, &row, &Why::fault("gave-up", sentence, remedy))?;
                }
            },
            // Taken back between the two looks.
            _ => {}
        }
    }
    Err(StoreError::Io {
        path: here.store.dir().into(),
        cause: std::io::Error::other("the adapter changes without end"),
    })
}

/// The model that going back would serve.
///
/// # Errors
/// The store's.
pub(crate) fn previous(shared: &Shared) -> Result<Option<Arc<Model>>, StoreError> {
    let here = shared.here();
    let Some(before) = here.store.with_conn(|c| bundles::previous(c))? else { return Ok(None) };
    let Some(id) = before.bundle_id else { return Ok(Some(shared.models.factory().clone())) };
    if let Some(ready) = shared.models.ready(id) {
        return Ok(Some(ready));
    }
    let Some(row) = here.store.with_conn(|c| bundles::get(c, id))? else { return Ok(None) };
    Ok(shared.models.load(here, &row).ok().map(Arc::new))
}

impl Probation {
    /// The series came to its end: a case where there is a summary. Part of the transaction that ends the job.
    ///
    /// # Errors
    /// The database's.
    pub fn ended(
        &self,
        tx: &Transaction<'_>,
        job_id: i64,
        summary: Option<&Value>,
        now_ms: i64,
    ) -> rusqlite::Result<()> {
        let event = if summary.is_some() { Event::Case } else { Event::NoCase };
        // Moved meanwhile, by a person: then this case no longer decides anything.
        if bundles::advance_within(tx, &self.row, event, &Why::default(), now_ms)?.is_ok()
            && let Some(summary) = summary
        {
            bundles::record_case(tx, self.row.id, &served_case(job_id, summary, now_ms))?;
        }
        Ok(())
    }

    /// The attempt came to nothing by no fault of the adapter.
    ///
    /// # Errors
    /// The store's.
    pub fn no_fault(&self, shared: &Shared) -> Result<(), StoreError> {
        shared.here().advance(&self.row, Event::NoCase, &Why::default()).map(|_| ())
    }

    /// The adapter made no result by its own fault: it is taken back.
    ///
    /// # Errors
    /// The store's.
    pub fn failed(&self, shared: &Shared, job_id: i64, code: &str) -> Result<(), StoreError> {
        let here = shared.here();
        let now = here.clock.now_ms();
        let mut case = served_case(job_id, &Value::Null, now);
        case.problem = code.to_string();
        let done = here.store.with_conn(|c| {
            bundles::advance(c, &self.row, Event::Case, &Why::default(), now, |tx| {
                bundles::record_case(tx, self.row.id, &case)
            })
        })?;
        if let Err(e) = done {
            log::info!("bundle {}: {e}", self.row.title());
        }
        self.judge(shared)
    }

    /// Commits it, takes it back, or leaves it, as its cases say.
    ///
    /// # Errors
    /// The store's.
    pub fn judge(&self, shared: &Shared) -> Result<(), StoreError> {
        judge_probation(shared, self.row.id).map(|_| ())
    }
}
