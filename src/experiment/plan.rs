//! The plan: which arms, on how many labelled slices, how many draws, with which settings.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::terms::{Task, structure};
use crate::train::TrainSettings;

/// Why a plan cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// It cannot be read.
    #[error("plan {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is not understood.
    #[error("plan {}: {problem}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

/// What an arm trains.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The base with an adapter, or a U-Net where the settings say so.
    #[default]
    Train,
    /// The base alone on true boxes.
    ZeroShot,
}

/// One method.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Arm {
    /// Name in files and tables.
    pub name: String,
    /// A sentence for the report.
    pub about: String,
    /// What it trains.
    #[serde(default)]
    pub kind: Kind,
    /// Settings that differ from the defaults, over those of `like`.
    #[serde(default)]
    pub settings: toml::Table,
    /// Another arm whose settings this one starts from.
    pub like: Option<String>,
    /// Evaluate what that arm trained on the same draw, asked as these settings say; nothing is trained.
    pub tensors_of: Option<String>,
    /// Labelled slices, and how many draws of each.
    pub runs: BTreeMap<String, usize>,
    /// Arms of a lower stage are run first.
    #[serde(default)]
    pub stage: u8,
    /// Evaluate true boxes and prompt-free decoding too in the draws below this number.
    #[serde(default)]
    pub bounds: usize,
    /// A point of the curve of quality over training time.
    #[serde(default)]
    pub time: bool,
}

/// The plan.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Seed of the split by subject and of the draws.
    pub seed: u64,
    /// Subjects kept for testing.
    pub test: usize,
    /// Structures of the task, in order.
    pub structures: Vec<String>,
    /// Label value in the subjects' label files to structure key.
    pub map: BTreeMap<String, String>,
    /// The labelled leg.
    pub side: crate::terms::Side,
    /// Minutes that the first arm's training takes on two quiet cores at the fewest slices, measured apart; the curve of quality over
    /// time says so.
    pub minutes: Option<f64>,
    /// The methods; the first is the one that others are compared with.
    pub arm: Vec<Arm>,
}

/// One run of a plan.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RunKey {
    /// The arm.
    pub arm: String,
    /// Labelled slices.
    pub slices: usize,
    /// Number of the draw, from 0.
    pub draw: usize,
}

impl RunKey {
    /// Name of the run's file, without extension.
    pub fn stem(&self) -> String {
        format!("{}-n{:02}-d{}", self.arm, self.slices, self.draw)
    }
}

impl Plan {
    /// Reads a plan.
    ///
    /// # Errors
    /// [`PlanError`].
    pub fn load(path: &Path) -> Result<Self, PlanError> {
        let text = std::fs::read_to_string(path).map_err(|source| PlanError::Io { path: path.into(), source })?;
        let format = |problem: String| PlanError::Format { path: path.into(), problem };
        let plan: Plan = toml::from_str(&text).map_err(|e| format(e.to_string()))?;
        for arm in &plan.arm {
            plan.settings(arm).map_err(|e| format(format_args!("arm {}: {e}", arm.name).to_string()))?;
            if let Some(n) = arm.runs.keys().find(|n| n.parse::<usize>().map_or(true, |n| n == 0)) {
                return Err(format(format_args!("arm {}: {n:?} is no number of slices", arm.name).to_string()));
            }
        }
        plan.task().map_err(format)?;
        Ok(plan)
    }

    /// The task.
    ///
    /// # Errors
    /// A structure that this release does not know.
    pub fn task(&self) -> Result<Task, String> {
        let known = |k: &String| structure(k).ok_or_else(|| format!("no structure {k:?}"));
        Ok(Task { name: "experiment".into(), structures: self.structures.iter().map(known).collect::<Result<_, _>>()? })
    }

    /// Settings of an arm: the defaults, changed by those that it is like, changed by its own.
    ///
    /// # Errors
    /// An unknown arm or key, in words.
    pub fn settings(&self, arm: &Arm) -> Result<TrainSettings, String> {
        let mut chain = vec![arm];
        while let Some(like) = chain.last().and_then(|a| a.like.as_ref()) {
            let next = self.arm.iter().find(|a| &a.name == like).ok_or_else(|| format!("no arm {like:?}"))?;
            if chain.len() > self.arm.len() {
                return Err("is like itself".into());
            }
            chain.push(next);
        }
        let mut table = toml::Table::new();
        for arm in chain.into_iter().rev() {
            merge(&mut table, &arm.settings);
        }
        table.try_into().map_err(|e: toml::de::Error| e.to_string())
    }

    /// Every run, so that few draws of every arm come before many of one.
    pub fn runs(&self) -> Vec<RunKey> {
        let mut all = Vec::new();
        for arm in &self.arm {
            for (n, draws) in &arm.runs {
                let slices = n.parse().unwrap_or(0);
                all.extend((0..*draws).map(|draw| RunKey { arm: arm.name.clone(), slices, draw }));
            }
        }
        let place = |name: &str| self.arm.iter().position(|a| a.name == name).unwrap_or(0);
        all.sort_by_key(|k| (self.arm[place(&k.arm)].stage, k.draw, k.slices, place(&k.arm)));
        all
    }
}

fn merge(into: &mut toml::Table, from: &toml::Table) {
    for (key, value) in from {
        match (into.get_mut(key), value) {
            (Some(toml::Value::Table(a)), toml::Value::Table(b)) => merge(a, b),
            _ => {
                into.insert(key.clone(), value.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(arms: &str) -> Result<Plan, PlanError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("plan.toml");
        let head = "seed = 1\ntest = 2\nstructures = [\"VL\"]\nside = \"right\"\nmap = { 1 = \"VL\" }\n";
        std::fs::write(&path, format!("{head}{arms}")).unwrap();
        Plan::load(&path)
    }

    #[test]
    fn an_arm_inherits_and_overrides() {
        let p = plan(
            "[[arm]]\nname = \"a\"\nabout = \"x\"\nruns = { 5 = 2 }\nsettings = { lr = 0.5, weights = { dice = 3.0 } }\n\
             [[arm]]\nname = \"b\"\nabout = \"y\"\nlike = \"a\"\nruns = { 5 = 1, 10 = 1 }\nsettings = { weights = { mask = 7.0 } }\n",
        )
        .unwrap();
        let s = p.settings(&p.arm[1]).unwrap();
        assert_eq!((s.lr, s.weights.dice, s.weights.mask), (0.5, 3.0, 7.0));
        let order: Vec<String> = p.runs().iter().map(RunKey::stem).collect();
        assert_eq!(order, ["a-n05-d0", "b-n05-d0", "b-n10-d0", "a-n05-d1"]);
    }

    #[test]
    fn mistakes_are_named() {
        let unknown =
            plan("[[arm]]\nname = \"a\"\nabout = \"x\"\nruns = { 5 = 1 }\nsettings = { stepz = 1 }\n").unwrap_err();
        assert!(unknown.to_string().contains("arm a") && unknown.to_string().contains("stepz"), "{unknown}");
        let cycle = plan("[[arm]]\nname = \"a\"\nabout = \"x\"\nlike = \"a\"\nruns = { 5 = 1 }\n").unwrap_err();
        assert!(cycle.to_string().contains("like itself"), "{cycle}");
    }
}
