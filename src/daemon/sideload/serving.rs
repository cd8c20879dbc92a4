//! Which adapter serves: the newest row of the store says it, and the loaded models follow between two series.
//!
//! A swap is the exchange of one pointer. The models that may be needed next (the candidate, the one before, those kept for going
//! back) are made ready beforehand, mostly as other tensors on the same graphs.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{Here, engine_refused, passes, why_of};
use crate::daemon::{Model, Shared, say_engine};
use crate::store::bundles::{self, Bundle, Event, Illegal, Serving, State, Why};
use crate::store::{StoreError, review};

/// How often the database is asked whether somebody else changed it.
const LOOK: Duration = Duration::from_millis(100);
/// After an error of the store or the disk.
const PAUSE: Duration = Duration::from_secs(2);
/// Longest that making a model ready may take before the task counts as hung.
const SILENCE: Duration = Duration::from_secs(300);
/// Most models that are held ready.
const MOST_READY: usize = 8;

/// The loaded models.
pub(crate) struct Models {
    factory: Arc<Model>,
    held: Mutex<Held>,
}

struct Held {
    /// The row of what serves that was taken last; 0 before the first.
    taken: i64,
    current: Arc<Model>,
    /// Models of bundles, newest last.
    ready: Vec<Arc<Model>>,
}

/// A bundle that cannot serve, and why.
type Unfit = (Box<Bundle>, Why);

impl Models {
    /// With the adapter that the configuration names, which serves until a bundle is committed.
    pub fn new(factory: Model) -> Models {
        let factory = Arc::new(factory);
        Models { held: Mutex::new(Held { taken: 0, current: factory.clone(), ready: Vec::new() }), factory }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The adapter that the configuration names.
    pub fn factory(&self) -> &Arc<Model> {
        &self.factory
    }

    /// Holds a model ready, so that a swap to it is the exchange of a pointer.
    pub fn hold(&self, model: Arc<Model>) {
        let mut held = self.held();
        held.ready.retain(|m| m.row() != model.row());
        held.ready.push(model);
        let surplus = held.ready.len().saturating_sub(MOST_READY);
        held.ready.drain(..surplus);
    }

    /// The model of a bundle, where it is loaded.
    pub fn ready(&self, row: i64) -> Option<Arc<Model>> {
        let held = self.held();
        held.ready.iter().chain([&held.current]).find(|m| m.row() == Some(row)).cloned()
    }

    /// Drops models whose bundles are neither under way nor kept.
    fn release(&self, keep: &[i64]) {
        self.held().ready.retain(|m| m.row().is_some_and(|r| keep.contains(&r)));
    }

    /// At start: notes the configuration's adapter where it serves, and takes what is to serve. Where the disk keeps that from being
    /// read, the service starts all the same, to receive; its series wait.
    ///
    /// # Errors
    /// The database's.
    pub fn begin(&self, here: Here<'_>) -> Result<Arc<Model>, StoreError> {
        let now = here.now();
        let factory = &self.factory;
        here.store.with_conn(|c| {
            let last = bundles::serving(c)?;
            let changed =
                last.as_ref().is_none_or(|s| s.bundle_id.is_none() && s.adapter_sha256 != factory.adapter_sha256());
            if changed {
                let reason = if last.is_some() {
                    "the configuration names another adapter"
                } else {
                    "the configuration's adapter"
                };
                let tx = c.transaction()?;
                bundles::serve(&tx, None, (factory.adapter(), factory.adapter_sha256(), ""), reason, now)?;
                tx.commit()?;
            }
            Ok(())
        })?;
        match self.settle(here) {
            Err(e @ StoreError::Io { .. }) => {
                log::error!("what is to serve cannot be taken, series wait for it: {e}");
                say_engine(here.store, here.config, factory)?;
                Ok(self.held().current.clone())
            }
            settled => settled,
        }
    }

    /// Takes what is to serve, and gives it. A bundle that cannot be made to serve is taken back, and what was before it serves.
    ///
    /// # Errors
    /// The database's; [`StoreError::Io`] where the disk keeps it from being held against what the box trusts, which says nothing of it:
    /// nothing is to serve in its stead.
    pub fn settle(&self, here: Here<'_>) -> Result<Arc<Model>, StoreError> {
        let mut held = self.held();
        loop {
            let Some(wanted) = here.store.with_conn(|c| bundles::serving(c))? else { return Ok(held.current.clone()) };
            if wanted.id == held.taken {
                return Ok(held.current.clone());
            }
            match self.model_of(&held, here, &wanted)? {
                Ok(model) => {
                    let before = std::mem::replace(&mut held.current, model);
                    let new = held.current.clone();
                    held.taken = wanted.id;
                    held.ready.retain(|m| m.row() != new.row());
                    if before.row().is_some() && before.row() != new.row() {
                        held.ready.push(before);
                    }
                    let now = here.now();
                    here.store.with_conn(|c| {
                        bundles::confirm(c, wanted.id, (new.adapter(), new.adapter_sha256()), now)?;
                        review::set_adapter(c, new.adapter_sha256())
                    })?;
                    log::info!("serving now: {} ({})", new.describe(), wanted.reason);
                    say_engine(here.store, here.config, &new)?;
                    return Ok(new);
                }
                Err((_, why)) if passes(&why) => return Err(here.not_now(&why)),
                Err((row, why)) => {
                    log::error!("bundle {} cannot serve [{}]: {}; {}", row.title(), why.code, why.sentence, why.remedy);
                    take_back(here, &row, &why)?;
                }
            }
        }
    }

    fn model_of(&self, held: &Held, here: Here<'_>, wanted: &Serving) -> Result<Result<Arc<Model>, Unfit>, StoreError> {
        let Some(id) = wanted.bundle_id else { return Ok(Ok(self.factory.clone())) };
        let Some(row) = here.store.with_conn(|c| bundles::get(c, id))? else { return Ok(Ok(self.factory.clone())) };
        if !row.state.may_serve() {
            let why = Why::fault("not-serving", format!("it is {}", row.state.word()), "the adapter before it serves");
            return Ok(Err((Box::new(row), why)));
        }
        if let Some(ready) = held.ready.iter().find(|m| m.row() == Some(id)) {
            return Ok(Ok(ready.clone()));
        }
        Ok(self.load(here, &row).map(Arc::new).map_err(|why| (Box::new(row), why)))
    }

    /// Loads a bundle's adapter beside the configuration's, after holding the bundle against this box.
    pub fn load(&self, here: Here<'_>, row: &Bundle) -> Result<Model, Why> {
        let opened = here.open(row, self.factory.base_sha256()).map_err(|e| why_of(&e))?;
        for caution in opened.cautions() {
            log::warn!("bundle {}: {caution}", row.title());
        }
        self.factory.beside(&opened, row.id).map_err(|e| match engine_refused(&e) {
            Some(refused) => why_of(&refused),
            None => Why::fault(
                "not-loadable",
                format!("its adapter cannot be loaded: {e}"),
                "see `scanside doctor`; sideload it again",
            ),
        })
    }

    /// Loads what going back may need, as far as the graphs are shared; the one before the present, whatever it takes.
    fn make_ready(&self, here: Here<'_>) -> Result<(), StoreError> {
        let (kept, previous) = here.store.with_conn(|c| {
            let all = bundles::list(c, MOST_READY)?;
            Ok((all, bundles::previous(c)?.and_then(|s| s.bundle_id)))
        })?;
        let may: Vec<i64> = kept
            .iter()
            .filter(|b| {
                !b.path.is_empty()
                    && (b.state.is_candidate()
                        || matches!(b.state, State::Committed | State::RolledBack { committed: true }))
            })
            .map(|b| b.id)
            .collect();
        self.release(&may);
        for row in kept.iter().filter(|b| may.contains(&b.id) && !b.state.is_candidate()) {
            if self.ready(row.id).is_some() {
                continue;
            }
            match self.load(here, row) {
                Ok(model) if model.shares_graphs_with(&self.factory) || previous == Some(row.id) => {
                    self.hold(Arc::new(model))
                }
                Ok(_) => {}
                Err(why) => log::warn!("bundle {} could not serve again [{}]: {}", row.title(), why.code, why.sentence),
            }
        }
        Ok(())
    }
}

/// Takes a bundle back, and sets what served before it, in one transaction.
///
/// # Errors
/// The database's.
pub(crate) fn take_back(here: Here<'_>, row: &Bundle, why: &Why) -> Result<(), StoreError> {
    let now = here.now();
    here.store.with_conn(|c| {
        let tx = c.transaction()?;
        let Some(seen) = bundles::get(&tx, row.id)? else { return Ok(()) };
        if seen.state.may_serve() {
            // The state was read in this transaction, so that no step but a missing one can be refused.
            if let Err(e) = bundles::advance_within(&tx, &seen, Event::RolledBack, why, now)? {
                log::error!("bundle {}: {e}", seen.title());
            }
        }
        if bundles::serving(&tx)?.is_some_and(|s| s.bundle_id == Some(row.id)) {
            let to = bundles::previous(&tx)?;
            let (id, adapter, sha, signer) = match &to {
                Some(s) => (s.bundle_id, s.adapter.as_str(), s.adapter_sha256.as_str(), s.signer.as_str()),
                None => (None, "", "", ""),
            };
            let reason = format!("{} was taken back: {}", seen.title(), why.sentence);
            bundles::serve(&tx, id, (adapter, sha, signer), &reason, now)?;
        }
        tx.commit()
    })?;
    log::warn!("bundle {} is taken back [{}]: {}", row.title(), why.code, why.sentence);
    Ok(())
}

/// Goes back to an adapter, for a person: to a version, to the configuration's (`Some(None)`), or to the one before (`None`).
///
/// # Errors
/// The database's; within, a sentence with the remedy.
pub fn roll_back_to(
    here: Here<'_>,
    to: Option<Option<&str>>,
    why: &str,
) -> Result<Result<Serving, String>, StoreError> {
    let now = here.now();
    here.store.with_conn(|c| {
        let tx = c.transaction()?;
        let Some(present) = bundles::serving(&tx)? else {
            return Ok(Err("nothing has served yet; start `scanside serve` once".into()));
        };
        let target: Option<Bundle> = match to {
            Some(Some(word)) => match find(&bundles::list(&tx, 10_000)?, word) {
                Ok(b) => Some(b),
                Err(sentence) => return Ok(Err(sentence)),
            },
            Some(None) => None,
            None => match bundles::previous(&tx)? {
                Some(Serving { bundle_id: Some(id), .. }) => bundles::get(&tx, id)?,
                Some(_) => None,
                None => return Ok(Err("nothing served before the present adapter".into())),
            },
        };
        if target.as_ref().map(|b| b.id) == present.bundle_id {
            return Ok(Err(format!(
                "{} serves already",
                target.map_or("the configuration's adapter".into(), |b| b.title())
            )));
        }
        let said = |b: &Bundle, e: Illegal| Ok(Err(format!("{}: {e}", b.title())));
        // What serves is taken back; a version that had been taken back may be taken up again.
        if let Some(id) = present.bundle_id
            && let Some(serving) = bundles::get(&tx, id)?
            && serving.state.may_serve()
        {
            let step = Why::fault("by-hand", format!("taken back by a person{why}"), "");
            if let Err(e) = bundles::advance_within(&tx, &serving, Event::RolledBack, &step, now)? {
                return said(&serving, e);
            }
        }
        if let Some(b) = &target
            && !b.state.may_serve()
            && let Err(e) =
                bundles::advance_within(&tx, b, Event::TakenUp, &Why::said(format!("taken up by a person{why}")), now)?
        {
            return said(b, e);
        }
        let title = target.as_ref().map_or(String::new(), Bundle::title);
        let (sha, signer) = target.as_ref().map_or(("", ""), |b| (b.adapter_sha256.as_str(), b.signer.as_str()));
        bundles::serve(&tx, target.as_ref().map(|b| b.id), (&title, sha, signer), &format!("by a person{why}"), now)?;
        let set = bundles::serving(&tx)?;
        tx.commit()?;
        Ok(set.ok_or_else(|| "nothing is to serve".to_string()))
    })
}

/// A kept bundle by `VERSION` or `NAME VERSION` or `NAME:VERSION`.
fn find(all: &[Bundle], word: &str) -> Result<Bundle, String> {
    let able =
        |b: &&Bundle| !b.path.is_empty() && matches!(b.state, State::Committed | State::RolledBack { committed: true });
    let named =
        |b: &&Bundle| word == b.version.to_string() || word == b.title() || word == format!("{}:{}", b.name, b.version);
    let fit: Vec<&Bundle> = all.iter().filter(able).filter(named).collect();
    let list = || {
        let kept: Vec<String> = all.iter().filter(able).map(Bundle::title).collect();
        if kept.is_empty() { "no bundle is kept".to_string() } else { format!("kept are: {}", kept.join(", ")) }
    };
    match fit.as_slice() {
        [one] => Ok((*one).clone()),
        [] => Err(format!("no version {word} that was committed is kept here; {}", list())),
        many if many.iter().all(|b| b.identity == many[0].identity) => Ok(many[0].clone()),
        _ => Err(format!("version {word} is ambiguous; say NAME:VERSION; {}", list())),
    }
}

/// Follows what others write into the database, and keeps ready what may be needed next.
pub(in crate::daemon) fn run(shared: &Shared) {
    let beat = shared.pulse.watch("adapters", SILENCE);
    let mut seen: Option<i64> = None;
    let mut settled: i64 = -1;
    while !shared.stopping() {
        beat.beat();
        let version: Result<i64, _> = shared.store.with_conn(|c| c.query_row("PRAGMA data_version", [], |r| r.get(0)));
        match version {
            Ok(v) if seen != Some(v) => {
                seen = Some(v);
                match shared.models.settle(shared.here()) {
                    Ok(_) => shared.candidates.raise(),
                    Err(e) => {
                        log::error!("what is to serve cannot be taken: {e}; tried again");
                        seen = None;
                        std::thread::sleep(PAUSE);
                    }
                }
            }
            Ok(_) => {}
            Err(e) => log::error!("the database cannot be read: {e}"),
        }
        let taken = shared.models.held().taken;
        if taken != settled {
            settled = taken;
            if let Err(e) = shared.models.make_ready(shared.here()) {
                log::error!("what going back needs cannot be made ready: {e}");
            }
        }
        std::thread::sleep(LOOK);
    }
}
