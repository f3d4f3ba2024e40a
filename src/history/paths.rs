//! Where one can go from the state that a volume holds, by the deltas and undos of one directory, and how points on the way
//! are given up.
//!
//! Pure. States are nodes, files are edges, and what can be reached is a tree. Guarantees: a point that is to be kept can be
//! reached before, between and after the steps of [`Paths::plan`], whichever of them was the last that was done; no step
//! needs another one to be done, so whoever was killed makes a new plan.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// The state before everything: what a full copy begins from.
pub const NOTHING: &str = "";

/// One file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edge {
    /// Its name.
    pub file: String,
    /// Id of the state that it begins from.
    pub from: String,
    /// Id of the state that it leads to.
    pub to: String,
    /// When that state was taken: seconds since 1970 UTC.
    pub at: i64,
}

/// One thing to do so that a point need not be kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Combine these files, in this order, into one that has the name of the last. It replaces that one, durably; then the
    /// others are of no use and go, the last first: so none ever leads nowhere.
    Fold(Vec<String>),
    /// Remove this file.
    Drop(String),
}

/// What can be reached.
#[derive(Clone, Debug, Default)]
pub struct Paths {
    /// In the order in which they are reached, with the place of the one before; none where that is the state that is held.
    reached: Vec<(Edge, Option<usize>)>,
    /// What cannot be reached.
    strays: Vec<Edge>,
}

impl Paths {
    /// All that can be reached from the state `held`, along the fewest files.
    pub fn of(mut edges: Vec<Edge>, held: &str) -> Self {
        // The same tree whatever the order of a directory is; of two ways to one state the newer file is taken.
        edges.sort_by(|a, b| b.file.cmp(&a.file));
        let mut by_base: BTreeMap<String, Vec<Edge>> = BTreeMap::new();
        for edge in edges {
            by_base.entry(edge.from.clone()).or_default().push(edge);
        }
        let mut seen: BTreeSet<String> = BTreeSet::from([held.to_owned()]);
        let mut paths = Self::default();
        let mut waiting = VecDeque::from([(held.to_owned(), None)]);
        while let Some((state, before)) = waiting.pop_front() {
            for edge in by_base.remove(&state).unwrap_or_default() {
                if seen.insert(edge.to.clone()) {
                    waiting.push_back((edge.to.clone(), Some(paths.reached.len())));
                    paths.reached.push((edge, before));
                } else {
                    paths.strays.push(edge);
                }
            }
        }
        paths.strays.extend(by_base.into_values().flatten());
        paths
    }

    /// The files whose ends can be reached.
    pub fn reached(&self) -> impl Iterator<Item = &Edge> {
        self.reached.iter().map(|(edge, _)| edge)
    }

    /// The files that lead nowhere new from here.
    pub fn strays(&self) -> &[Edge] {
        &self.strays
    }

    /// The files on the way to the state that `file` leads to, in the order in which they are applied.
    pub fn way_to(&self, file: &str) -> Option<Vec<&Edge>> {
        let mut at = self
            .reached
            .iter()
            .position(|(edge, _)| edge.file == file)?;
        let mut way = Vec::new();
        loop {
            let (edge, before) = self.reached.get(at)?;
            way.push(edge);
            match before {
                Some(before) => at = *before,
                None => break,
            }
        }
        way.reverse();
        Some(way)
    }

    /// What is to be done so that the points to which `keeps` says no are given up. Points from which several ways go on
    /// stay: without them each way would need a copy of what leads there.
    pub fn plan(&self, keeps: &dyn Fn(&Edge) -> bool) -> Vec<Step> {
        let mut plan = Vec::new();
        let goes: Vec<bool> = self.reached().map(|edge| !keeps(edge)).collect();
        let mut next: Vec<Vec<usize>> = vec![Vec::new(); self.reached.len()];
        for (place, (_, before)) in self.reached.iter().enumerate() {
            if let Some(before) = before {
                next[*before].push(place);
            }
        }
        let mut is_dropped = vec![false; self.reached.len()];
        // From the far ends: behind a point that goes there is nothing, or something that stays.
        for place in (0..self.reached.len()).rev() {
            if goes[place] && next[place].is_empty() {
                let (edge, before) = &self.reached[place];
                plan.push(Step::Drop(edge.file.clone()));
                is_dropped[place] = true;
                if let Some(before) = before {
                    next[*before].retain(|other| *other != place);
                }
            }
        }
        // Whatever stays, and does not lead to the point before it because that one goes.
        for place in 0..self.reached.len() {
            let is_passed = goes[place] && next[place].len() == 1;
            if is_passed || is_dropped[place] {
                continue;
            }
            let mut parts = vec![place];
            let mut at = self.reached[place].1;
            while let Some(before) = at.filter(|before| goes[*before] && next[*before].len() == 1) {
                parts.push(before);
                at = self.reached[before].1;
            }
            if parts.len() > 1 {
                let name = |place: &usize| self.reached[*place].0.file.clone();
                plan.push(Step::Fold(parts.iter().rev().map(name).collect()));
            }
        }
        plan
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn edge(file: &str, from: &str, to: &str) -> Edge {
        Edge {
            file: file.to_owned(),
            from: from.to_owned(),
            to: to.to_owned(),
            at: 0,
        }
    }

    fn line() -> Vec<Edge> {
        vec![
            edge("1", "2", "1"),
            edge("2", "3", "2"),
            edge("3", "4", "3"),
            edge("4", "5", "4"),
        ]
    }

    #[test]
    fn neighbours_are_folded_and_the_oldest_dropped() {
        let paths = Paths::of(line(), "5");
        let names: Vec<&str> = paths
            .way_to("2")
            .unwrap()
            .iter()
            .map(|edge| &*edge.file)
            .collect();
        assert_eq!(names, ["4", "3", "2"]);
        assert_eq!(paths.way_to("9"), None);
        let plan = paths.plan(&|edge| edge.file == "2");
        let fold = Step::Fold(["4", "3", "2"].map(str::to_owned).to_vec());
        assert_eq!(plan, [Step::Drop("1".to_owned()), fold]);
        assert_eq!(paths.plan(&|_| true), []);
        let all = paths.plan(&|_| false);
        assert_eq!(all.len(), 4, "{all:?}");
    }

    #[test]
    fn what_a_fold_has_left_is_a_branch_that_is_dropped() {
        // Folded 4, 3 and 2 into 2, and was killed before the parts went.
        let mut edges = line();
        edges[1] = edge("2", "5", "2");
        let paths = Paths::of(edges, "5");
        let plan = paths.plan(&|edge| edge.file == "2" || edge.file == "1");
        assert_eq!(
            plan,
            [Step::Drop("3".to_owned()), Step::Drop("4".to_owned())]
        );
    }

    #[test]
    fn after_a_way_back_there_are_ways_in_both_directions() {
        let mut edges = line();
        // From 2 back to 5: the undo of the rollback.
        edges.push(edge("5", "2", "5"));
        let paths = Paths::of(edges, "2");
        let names = |file: &str| -> Vec<String> {
            paths
                .way_to(file)
                .unwrap()
                .iter()
                .map(|edge| edge.file.clone())
                .collect()
        };
        assert_eq!(names("3"), ["5", "4", "3"]);
        assert_eq!(names("1"), ["1"]);
        assert_eq!(paths.strays().len(), 1, "what leads to what is held");
    }

    /// Does a part of a plan, as the shell does it: each change is one moment.
    fn moments(edges: &[Edge], plan: &[Step]) -> Vec<Vec<Edge>> {
        let mut now = edges.to_vec();
        let mut moments = vec![now.clone()];
        for step in plan {
            match step {
                Step::Drop(file) => now.retain(|edge| edge.file != *file),
                Step::Fold(parts) => {
                    let (last, others) = parts.split_last().unwrap();
                    let find =
                        |file: &String| now.iter().find(|edge| edge.file == *file).unwrap().clone();
                    for pair in parts.windows(2) {
                        assert_eq!(find(&pair[0]).to, find(&pair[1]).from, "a chain");
                    }
                    let from = find(&parts[0]).from;
                    for edge in now.iter_mut().filter(|edge| edge.file == *last) {
                        edge.from.clone_from(&from);
                    }
                    moments.push(now.clone());
                    for file in others.iter().rev() {
                        now.retain(|edge| edge.file != *file);
                        moments.push(now.clone());
                    }
                }
            }
            moments.push(now.clone());
        }
        moments
    }

    proptest! {
        #[test]
        fn whatever_moment_is_the_last_every_kept_point_can_be_reached(
            parents in prop::collection::vec(any::<prop::sample::Index>(), 1..14),
            keeps in prop::collection::vec(any::<bool>(), 14),
            // 0 makes lines, which is what there is mostly.
            is_line in any::<bool>(),
        ) {
            let edges: Vec<Edge> = parents
                .iter()
                .enumerate()
                .map(|(number, parent)| {
                    let parent = if is_line { number } else { parent.index(number + 1) };
                    edge(&format!("f{number:02}"), &parent.to_string(), &(number + 1).to_string())
                })
                .collect();
            let is_kept = |edge: &Edge| keeps[edge.file[1..].parse::<usize>().unwrap()];
            let plan = Paths::of(edges.clone(), "0").plan(&is_kept);
            for moment in moments(&edges, &plan) {
                let paths = Paths::of(moment.clone(), "0");
                for edge in edges.iter().filter(|edge| is_kept(edge)) {
                    let way = paths.way_to(&edge.file);
                    prop_assert!(way.is_some(), "{} of {:?} after {:?}", edge.file, moment, plan);
                    prop_assert_eq!(&way.unwrap().last().unwrap().to, &edge.to);
                }
                // Killed then, the next plan gets as far, and there is an end of it.
                let mut rest = moment;
                for _ in 0..3 {
                    let plan = Paths::of(rest.clone(), "0").plan(&is_kept);
                    rest = moments(&rest, &plan).pop().unwrap();
                }
                prop_assert_eq!(Paths::of(rest.clone(), "0").plan(&is_kept), vec![]);
                if is_line {
                    prop_assert!(rest.iter().all(is_kept), "{:?}", rest);
                }
            }
        }
    }
}
