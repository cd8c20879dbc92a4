//! The life of an adapter bundle on this box: which step may follow which, and how often a step was begun.
//!
//! ```text
//! received ─▶ verified ─▶ staged ─▶ parity-checked ─▶ shadow ─▶ probation ─▶ committed ◀─┐
//!     │           │          │             │            │           │            │       │ taken up again
//!     └───────────┴──────────┴──── refused ┴────────────┘           └──▶ rolled-back ────┘ (by a person)
//! ```
//! A stage of length 0 is left out: from parity-checked a bundle may go to probation or be committed at once. What never
//! served is refused; what served is rolled back. Attempts are counted before the work, so that a step that takes the process
//! down with it is seen to have been tried.

use serde::{Deserialize, Serialize};

/// A step is given up after it was begun this often without coming to an end.
pub const MAX_ATTEMPTS: u32 = 3;

/// Where a bundle stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum State {
    /// Its file is on this box, whole and synced; nothing is known of it.
    Received {
        /// How often verification was begun.
        attempts: u32,
    },
    /// Signature, version and hashes are right; it waits for its turn.
    Verified,
    /// It is the candidate; its parity images are to be run.
    Staged {
        /// How often the parity check was begun.
        attempts: u32,
    },
    /// Its own parity images come out right on this box.
    ParityChecked,
    /// It runs beside the active adapter; nothing of it leaves the box.
    Shadow {
        /// How often the next case was begun.
        attempts: u32,
        /// Cases compared.
        cases: u32,
    },
    /// It serves, watched.
    Probation {
        /// How often the next case was begun.
        attempts: u32,
        /// Cases served.
        cases: u32,
    },
    /// It may serve.
    Committed,
    /// It served and was taken back.
    RolledBack {
        /// Whether it had been committed: only then may a person take it up again.
        committed: bool,
    },
    /// It never serves.
    Refused,
}

/// What happens to a bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The work of its state begins.
    Begin,
    /// Its signature, version and hashes are right.
    Verified,
    /// It becomes the candidate.
    Staged,
    /// Its parity images came out right.
    ParityPassed,
    /// It begins to run beside the active adapter.
    ShadowBegan,
    /// A case in shadow or on probation ended.
    Case,
    /// What was begun came to an end and says nothing of the bundle: a series that nobody must segment, a full disk.
    NoCase,
    /// It begins to serve, watched.
    ProbationBegan,
    /// It passed everything.
    Committed,
    /// It is taken back.
    RolledBack,
    /// A person takes up again what had been committed.
    TakenUp,
    /// It must not serve.
    Refused,
}

/// Every event; for tests.
pub const EVENTS: [Event; 12] = [
    Event::Begin,
    Event::Verified,
    Event::Staged,
    Event::ParityPassed,
    Event::ShadowBegan,
    Event::Case,
    Event::NoCase,
    Event::ProbationBegan,
    Event::Committed,
    Event::RolledBack,
    Event::TakenUp,
    Event::Refused,
];

/// A step that the life of a bundle does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Illegal {
    /// The event does not belong to the state.
    #[error("a bundle that is {} cannot take the step {event:?}", from.word())]
    Step {
        /// Where the bundle stands.
        from: State,
        /// What was to happen.
        event: Event,
    },
    /// The work was begun as often as is allowed.
    #[error("the step after {} was begun {MAX_ATTEMPTS} times and never ended", .0.word())]
    Exhausted(State),
    /// Someone else moved the bundle meanwhile.
    #[error("the bundle is {} meanwhile", .0.word())]
    Moved(State),
}

impl State {
    /// The state after an event.
    ///
    /// # Errors
    /// [`Illegal::Step`] for a step that does not exist; [`Illegal::Exhausted`] where the work was begun too often.
    pub fn after(self, event: Event) -> Result<State, Illegal> {
        use State::*;
        let begun =
            |attempts: u32| if attempts < MAX_ATTEMPTS { Ok(attempts + 1) } else { Err(Illegal::Exhausted(self)) };
        Ok(match (self, event) {
            (Received { attempts }, Event::Begin) => Received { attempts: begun(attempts)? },
            (Received { attempts }, Event::NoCase) => Received { attempts: attempts.saturating_sub(1) },
            (Received { .. }, Event::Verified) => Verified,
            (Verified, Event::Staged) => Staged { attempts: 0 },
            (Staged { attempts }, Event::Begin) => Staged { attempts: begun(attempts)? },
            (Staged { attempts }, Event::NoCase) => Staged { attempts: attempts.saturating_sub(1) },
            (Staged { .. }, Event::ParityPassed) => ParityChecked,
            (ParityChecked, Event::ShadowBegan) => Shadow { attempts: 0, cases: 0 },
            (Shadow { attempts, cases }, Event::Begin) => Shadow { attempts: begun(attempts)?, cases },
            (Shadow { cases, .. }, Event::Case) => Shadow { attempts: 0, cases: cases.saturating_add(1) },
            (ParityChecked | Shadow { .. }, Event::ProbationBegan) => Probation { attempts: 0, cases: 0 },
            (Probation { attempts, cases }, Event::Begin) => Probation { attempts: begun(attempts)?, cases },
            (Probation { cases, .. }, Event::Case) => Probation { attempts: 0, cases: cases.saturating_add(1) },
            (Shadow { cases, .. }, Event::NoCase) => Shadow { attempts: 0, cases },
            (Probation { cases, .. }, Event::NoCase) => Probation { attempts: 0, cases },
            (ParityChecked | Shadow { .. } | Probation { .. }, Event::Committed) => Committed,
            (Probation { .. }, Event::RolledBack) => RolledBack { committed: false },
            (Committed, Event::RolledBack) => RolledBack { committed: true },
            (RolledBack { committed: true }, Event::TakenUp) => Committed,
            (Received { .. } | Verified | Staged { .. } | ParityChecked | Shadow { .. }, Event::Refused) => Refused,
            (from, event) => return Err(Illegal::Step { from, event }),
        })
    }

    /// Its word, as stored and shown.
    pub fn word(self) -> &'static str {
        match self {
            State::Received { .. } => "received",
            State::Verified => "verified",
            State::Staged { .. } => "staged",
            State::ParityChecked => "parity-checked",
            State::Shadow { .. } => "shadow",
            State::Probation { .. } => "probation",
            State::Committed => "committed",
            State::RolledBack { .. } => "rolled-back",
            State::Refused => "refused",
        }
    }

    /// Word, attempts, cases and whether it had been committed: the columns of its row.
    pub(super) fn columns(self) -> (&'static str, u32, u32, bool) {
        let (attempts, cases, committed) = match self {
            State::Received { attempts } | State::Staged { attempts } => (attempts, 0, false),
            State::Shadow { attempts, cases } | State::Probation { attempts, cases } => (attempts, cases, false),
            State::RolledBack { committed } => (0, 0, committed),
            State::Committed => (0, 0, true),
            State::Verified | State::ParityChecked | State::Refused => (0, 0, false),
        };
        (self.word(), attempts, cases, committed)
    }

    /// From the columns of its row; none for a word that no state has.
    pub(super) fn of(word: &str, attempts: u32, cases: u32, committed: bool) -> Option<State> {
        Some(match word {
            "received" => State::Received { attempts },
            "verified" => State::Verified,
            "staged" => State::Staged { attempts },
            "parity-checked" => State::ParityChecked,
            "shadow" => State::Shadow { attempts, cases },
            "probation" => State::Probation { attempts, cases },
            "committed" => State::Committed,
            "rolled-back" => State::RolledBack { committed },
            "refused" => State::Refused,
            _ => return None,
        })
    }

    /// Whether it has not come to an end yet.
    pub fn under_way(self) -> bool {
        !matches!(self, State::Committed | State::RolledBack { .. } | State::Refused)
    }

    /// Whether it holds the candidate's place.
    pub fn is_candidate(self) -> bool {
        self.under_way() && !matches!(self, State::Received { .. } | State::Verified)
    }

    /// Whether an adapter in this state may make a result for a patient.
    pub fn may_serve(self) -> bool {
        matches!(self, State::Probation { .. } | State::Committed)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(events: &[Event]) -> Result<State, Illegal> {
        events.iter().try_fold(State::Received { attempts: 0 }, |s, e| s.after(*e))
    }

    #[test]
    fn the_whole_way_and_its_short_cuts() {
        use Event::*;
        let start = [Begin, Verified, Staged, Begin, ParityPassed];
        let with = |rest: &[Event]| run(&[&start[..], rest].concat());
        assert_eq!(with(&[ShadowBegan, Begin, Case, ProbationBegan, Begin, Case, Committed]), Ok(State::Committed));
        assert_eq!(with(&[Committed, RolledBack, TakenUp]), Ok(State::Committed));
        assert_eq!(with(&[ProbationBegan, RolledBack]), Ok(State::RolledBack { committed: false }));
        assert!(with(&[ProbationBegan, RolledBack, TakenUp]).is_err(), "what failed its probation never comes back");
        assert!(with(&[ProbationBegan, Refused]).is_err(), "what served is rolled back, not refused");
        assert!(with(&[ShadowBegan, RolledBack]).is_err(), "what never served cannot be rolled back");
    }

    #[test]
    fn a_step_is_begun_three_times_at_most_and_a_case_counts_afresh() {
        use Event::*;
        assert!(matches!(run(&[Begin; 4]), Err(Illegal::Exhausted(State::Received { attempts: 3 }))));
        // What was no fault of the bundle does not count.
        assert_eq!(run(&[Begin, NoCase].repeat(5)), Ok(State::Received { attempts: 0 }));
        assert_eq!(run(&[Begin, Begin, NoCase]), Ok(State::Received { attempts: 1 }));
        let mut events = vec![Begin, Verified, Staged, Begin, ParityPassed, ShadowBegan];
        for _ in 0..10 {
            events.extend([Begin, Begin, Begin, Case]);
        }
        assert_eq!(run(&events), Ok(State::Shadow { attempts: 0, cases: 10 }));
    }

    /// Every step there is, by words: written apart from the machine.
    const LEGAL: [(&str, &[&str]); 9] = [
        ("received", &["received", "verified", "refused"]),
        ("verified", &["staged", "refused"]),
        ("staged", &["staged", "parity-checked", "refused"]),
        ("parity-checked", &["shadow", "probation", "committed", "refused"]),
        ("shadow", &["shadow", "probation", "committed", "refused"]),
        ("probation", &["probation", "committed", "rolled-back"]),
        ("committed", &["rolled-back"]),
        ("rolled-back", &["committed"]),
        ("refused", &[]),
    ];

    proptest! {
        #[test]
        fn no_row_of_events_leaves_the_drawn_ways(events in proptest::collection::vec((0usize..EVENTS.len(), 0u8..4), 0..80)) {
            let mut state = State::Received { attempts: 0 };
            let (mut verified, mut parity, mut on_probation) = (false, false, false);
            for (e, rare) in events {
                let event = EVENTS[e];
                // Ends are rare, so that rows of events come far.
                if matches!(event, Event::Refused | Event::RolledBack) && rare > 0 {
                    continue;
                }
                let Ok(next) = state.after(event) else { continue };
                let ways = LEGAL.iter().find(|(w, _)| *w == state.word()).unwrap().1;
                prop_assert!(ways.contains(&next.word()), "{state:?} {event:?} {next:?}");
                verified |= matches!(next, State::Verified);
                parity |= matches!(next, State::ParityChecked);
                on_probation |= matches!(next, State::Probation { .. });
                // Nothing unverified or untested ever serves.
                prop_assert!(!next.may_serve() || (verified && parity));
                let unserved = matches!(next, State::RolledBack { committed: false });
                prop_assert!(!unserved || on_probation);
                prop_assert!(next.columns().1 <= MAX_ATTEMPTS);
                // A row gives back the state that it was made of.
                let (word, attempts, cases, committed) = next.columns();
                prop_assert_eq!(State::of(word, attempts, cases, committed), Some(next));
                state = next;
            }
            // What is refused stays refused.
            prop_assert!(EVENTS.iter().all(|e| State::Refused.after(*e).is_err()));
        }
    }
}
